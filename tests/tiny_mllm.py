"""A multimodal model of a few thousand parameters, with random weights, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch

from viq.data.text.text_tokenizer import train_text_tokenizer
from viq.mllm.chat import ViQForConditionalGeneration, ViQProcessor
from viq.mllm.loading import assemble, make_processor
from viq.models.language.vision_language import LanguageConfig, build_language
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.tokenizer import VisualTokenizer

TEXTS = ["What is this? Where are they? A red cup, two blue cups.", "How many? 12345"]


def saved_tokenizer(folder: Path, seed: int = 0, **changes: Any) -> VisualTokenizer:
    """A visual tokenizer in a folder."""
    model = tiny.tokenizer(seed=seed)
    model.config = replace(model.config, **changes)
    model.save_pretrained(folder)
    return VisualTokenizer.from_pretrained(folder)


def model_and_processor(
    tokenizer_folder: str | Path, system: str = "", seed: int = 0
) -> tuple[ViQForConditionalGeneration, ViQProcessor]:
    """In eval mode, fp32."""
    torch.manual_seed(seed)
    embedder = CodeEmbedder.from_tokenizer(tokenizer_folder)
    processor = make_processor(train_text_tokenizer(TEXTS * 3, 300), embedder)
    processor.system = system
    shape = LanguageConfig(width=32, depth=2, heads=2, mlp_width=64)
    language = build_language(shape, len(processor.tokenizer))
    with torch.no_grad():  # wide enough apart that the likeliest word is never a matter of rounding
        for parameter in language.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return assemble(language, embedder, processor).eval(), processor


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
