"""Datasets: records, splitting, checks, the published sets."""
