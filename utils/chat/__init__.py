"""Talking to a steered model: replies as streams, the terminal, the page in a browser, the server."""
