"""The model: which one, loading, prompts, steering, fast passes, generation."""
