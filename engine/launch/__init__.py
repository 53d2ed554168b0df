"""Floor 4: a Step as a command. Builds, never starts."""
