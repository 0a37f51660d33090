"""Vectors in other tools' files, and texts measured along vectors."""
