"""Floor 3: what the training data is."""
