"""Floor 3: whether and how a run fits the machine."""
