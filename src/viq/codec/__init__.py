"""Codes in fewer bytes, without loss."""

from viq.codec.entropy_model import EntropyModel, beside, find_model

__all__ = ["EntropyModel", "beside", "find_model"]
