"""Scores of free answers by a judge model."""
