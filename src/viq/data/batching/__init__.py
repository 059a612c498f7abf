"""Corpora by weight, packed into micro-batches that resume anywhere."""
