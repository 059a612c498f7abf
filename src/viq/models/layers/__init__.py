"""Attention, blocks, rotary positions."""
