"""From a sentence to a steering vector: what is written, answered, read, chosen and shown."""
