"""Training a language model on codes."""
