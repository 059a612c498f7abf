"""Language models on codes, asked held-out questions."""
