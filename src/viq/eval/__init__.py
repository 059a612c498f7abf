"""Evaluation: how much of an image the codes keep, and how well the codebook is used."""
