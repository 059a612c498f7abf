"""Conversations, the chat format, text tokenizers."""
