"""Checkpoints as files: what is in them, whether they are whole, what can be done with them. No torch."""
