"""Shapes of tokenizers: tiny, so400m, g, transform."""

from __future__ import annotations

from viq.models.tokenizer.config import TextConfig
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.semantic import SemanticConfig
from viq.models.tokenizer.tokenizer import TokenizerConfig
from viq.models.tokenizer.transform_code import TransformConfig


def tiny() -> TokenizerConfig:
    """6.45M parameters, 64,000 codes; 12.9 MB in half precision."""
    return TokenizerConfig(
        name="viq-tiny",
        encoder=EncoderConfig(width=192, depth=4, heads=3, mlp_width=768, position_grid=16),
        quantizer=QuantizerConfig(
            proximal_width=32,
            heads=3,
            pre_depth=1,
            slot_depth=1,
            slot_attention_width=64,
            slot_mlp_ratio=1,
            post_depth=1,
        ),
        decoder=DecoderConfig(width=192, depth=5),
        tile=1024,
    )


def so400m() -> TokenizerConfig:
    """The encoder of SigLIP2-so400m with ViQ's quantizer and our pixel decoder."""
    return TokenizerConfig(
        name="viq-so400m",
        encoder=EncoderConfig(width=1152, depth=27, heads=16, mlp_width=4304),
        quantizer=QuantizerConfig(),
        decoder=DecoderConfig(width=768, depth=12),
        tile=2048,
    )


def g() -> TokenizerConfig:
    """The paper's model: the encoder of SigLIP2-g with ViQ's quantizer and our pixel decoder."""
    return TokenizerConfig(
        name="viq-g",
        encoder=EncoderConfig(width=1536, depth=40, heads=16, mlp_width=6144),
        quantizer=QuantizerConfig(),
        decoder=DecoderConfig(width=1024, depth=12),
        tile=2048,
    )


def transform() -> TokenizerConfig:
    """A transform code, fitted in closed form, one code in sixteen of meaning by EfficientNet-Lite0
    (3.0M parameters), and a decoder of 0.6M parameters."""
    return TokenizerConfig(
        name="viq-transform",
        encoder=EncoderConfig(
            width=328, depth=0, heads=4, mlp_width=656, semantic=SemanticConfig()
        ),
        quantizer=QuantizerConfig(
            bottleneck="transform",
            heads=4,
            pre_depth=0,
            slot_depth=0,
            post_depth=0,
            transform=TransformConfig(detail=32_000),
        ),
        decoder=DecoderConfig(width=128, depth=3, mlp_ratio=3, refine_depth=2),
        text=TextConfig(),
        tile=1024,
    )


MODELS = {"tiny": tiny, "so400m": so400m, "g": g, "transform": transform}
