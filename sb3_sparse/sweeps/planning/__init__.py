"""What a study is: from a file to its runs, and what they will cost."""
