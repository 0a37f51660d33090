"""Writing, reading and explaining files."""
