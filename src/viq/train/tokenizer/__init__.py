"""Training a tokenizer, stage by stage."""
