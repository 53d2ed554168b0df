"""Floor 4: lines and records as metrics, alerts and diagnoses."""
