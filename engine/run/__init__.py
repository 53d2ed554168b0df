"""Floor 5: a Run's record on disk and the supervisor that carries it out."""
