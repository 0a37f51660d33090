"""Fine-tuning, for comparison with steering."""
