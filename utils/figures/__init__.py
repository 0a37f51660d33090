"""Figures, each with its data beside it."""
