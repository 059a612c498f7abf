"""Training a language model that generates codes."""
