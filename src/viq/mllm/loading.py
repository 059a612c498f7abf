"""Load a multimodal language model, or make one of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
)

from viq.core.errors import first_line
from viq.core.files import bundled
from viq.core.levels import codebook_size
from viq.core.quiet import quiet
from viq.core.types import ViqError
from viq.data.text.chat_format import ChatConfig
from viq.data.text.chat_template import answer_ends
from viq.metrics.run_log import RECIPE, read_recipe, stage_names
from viq.mllm.modeling import ViQConfig, ViQForConditionalGeneration
from viq.mllm.processing import CHATML, ViQProcessor
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.transform_code import pad_mode_of
from viq.weights import checkpoint

MODEL = "model"  # of a run folder: RUN/STAGE/model


def make_processor(
    text_tokenizer: Any,
    embedder: CodeEmbedder,
    *,
    merge_size: int = 2,
    chat: ChatConfig | None = None,
) -> ViQProcessor:
    """The processor for a text tokenizer and an embedder."""
    chat = chat or ChatConfig()
    return ViQProcessor(
        text_tokenizer,
        system=chat.system,
        max_length=chat.max_length,
        merge_size=merge_size,
        fingerprint=embedder.config.fingerprint,
        codebook_size=codebook_size(embedder.config.levels),
        pad_mode=pad_mode_of(embedder.config.transform),
    )


def assemble(
    language: Any,
    embedder: CodeEmbedder,
    processor: ViQProcessor,
    *,
    image_positions: bool = False,
) -> ViQForConditionalGeneration:
    """A model of its parts; its projector is new. It answers greedily unless asked otherwise.

    Args:
        image_positions: as in `ViQConfig`.
    """
    text_tokenizer = processor.tokenizer
    if len(text_tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(text_tokenizer), mean_resizing=False)
    model = ViQForConditionalGeneration.from_parts(
        language,
        embedder,
        image_token_id=processor.image_token_id,
        merge_size=processor.merge_size,
        image_positions=image_positions,
    )
    ends = [text_tokenizer.convert_tokens_to_ids(end) for end in answer_ends(text_tokenizer)]
    if processor.chat_format != CHATML and text_tokenizer.eos_token_id is not None:
        ends = list(dict.fromkeys([*ends, text_tokenizer.eos_token_id]))
    model.generation_config = GenerationConfig(
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=text_tokenizer.pad_token_id,
    )
    return model


def load_mllm(
    name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[ViQForConditionalGeneration, ViQProcessor]:
    """Model and processor, ready to answer.

    Args:
        name: of a model that comes with the package; or a run folder of `viq train mllm`, of which
            the last finished stage is taken; a folder of `save_pretrained`; or a hub id.

    Raises:
        ViqError: no model there.
    """
    place = _place(name)
    with _as_viq_error(place):
        with quiet():
            model = ViQForConditionalGeneration.from_pretrained(str(place), dtype=dtype)
        processor = ViQProcessor.from_pretrained(str(place))
    return model.to(device).eval(), processor


def load_config(name: str | Path) -> ViQConfig:
    """The config alone, of the same places as `load_mllm`. Raises as it does."""
    place = _place(name)
    with _as_viq_error(place):
        return ViQConfig.from_pretrained(str(place))


def _place(name: str | Path) -> str | Path:
    """The folder of a model, or what is no folder here and may be a hub id.

    Raises:
        ViqError: a folder of something else.
    """
    folder = bundled(name) or Path(name)
    if (folder / RECIPE).is_file():
        folder = _last_stage(folder)
    if folder.is_dir():
        kind = checkpoint.read_config(folder).get("model_type")
        if kind != ViQConfig.model_type:
            raise ViqError(
                f"{folder}: holds no multimodal model{f' but a {kind}' if kind else ''}; give a "
                "run folder of viq train mllm"
            )
        return folder
    return name


@contextmanager
def _as_viq_error(place: str | Path) -> Iterator[None]:
    """What damage makes the libraries raise, which is anyone's guess, in one line."""
    try:
        yield
    except Exception as error:
        raise ViqError(
            f"{place}: cannot be loaded ({first_line(error, 400)}); give a run folder"
        ) from None


def _last_stage(run: Path) -> Path:
    done = [run / name / MODEL for name in stage_names(read_recipe(run))]
    done = [folder for folder in done if (folder / checkpoint.CONFIG_FILE).is_file()]
    if not done:
        raise ViqError(f"{run}: no stage of this run has ended; let viq train mllm finish one")
    return done[-1]
