"""Reconstruction, tiles, stability of codes."""
