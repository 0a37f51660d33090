"""Steering vectors: made, kept, analysed."""
