"""Codes in fewer bytes, without loss."""

from viq.codec.class_tables import ClassTables
from viq.codec.counted_tables import CountedTables
from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel, beside
from viq.codec.find import find_model
from viq.codec.level_network import LevelNetwork

__all__ = [
    "ClassTables",
    "CountedTables",
    "ENTROPY_FILE",
    "EntropyModel",
    "LevelNetwork",
    "beside",
    "find_model",
]
