"""Charts without a terminal: samples, scales and dots."""
