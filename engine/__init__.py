"""Plans, checks, launches and supervises gpt-oss training with Megatron. No user interface."""
