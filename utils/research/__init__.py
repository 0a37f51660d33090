"""Analyses of vectors: what they are made of, what they do, and how methods compare."""
