"""Looking inside a model, token by token and layer by layer."""
