"""The visual tokenizer: images to codes, codes to features, features to images."""

from viq.models.tokenizer.config import TokenizerConfig
from viq.models.tokenizer.tokenizer import TokenizerOutput, VisualTokenizer

__all__ = ["TokenizerConfig", "TokenizerOutput", "VisualTokenizer"]
