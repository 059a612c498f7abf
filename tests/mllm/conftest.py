"""A tiny multimodal model and its tokenizer."""

from pathlib import Path

import pytest
import tiny_mllm
from mllm_parts import Parts

from viq.models.tokenizer.tokenizer import VisualTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_mllm.saved_tokenizer(path, tile=64)
    return path


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    model, processor = tiny_mllm.model_and_processor(folder)
    return model, processor, VisualTokenizer.from_pretrained(folder)
