"""How every command reads its options, and says what is wrong."""
