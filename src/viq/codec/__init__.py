"""Codes in fewer bytes, without loss."""

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel, beside
from viq.codec.find import find_model

__all__ = ["ENTROPY_FILE", "EntropyModel", "beside", "find_model"]
