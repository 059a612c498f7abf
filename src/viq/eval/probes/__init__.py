"""What a small language model reads from codes."""
