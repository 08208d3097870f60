"""One run: its folder, what it depends on, and how it is made."""
