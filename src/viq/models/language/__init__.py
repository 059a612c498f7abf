"""Causal language models that read visual features."""
