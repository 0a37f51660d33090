"""What steering did: sweeps, results, statistics."""
