"""Floor 2: what is read from the driver and the operating system. Use it through `engine.machine`."""
