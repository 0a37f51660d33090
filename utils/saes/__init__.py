"""Sparse autoencoders: the dictionaries, their training, and what of a direction is in them."""
