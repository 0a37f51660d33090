"""From a sentence to a behavior: instructions, questions, answers and a vector."""
