"""A causal language model that reads visual features: what gives the features their meaning.

The model itself is a Hugging Face one: any causal LM with special tokens of ChatML (Qwen2.5),
frozen but for low-rank adapters, or a small Qwen2 built from a shape and trained from scratch. Ours
is what lies around it: the projector, the places where visual vectors go, and the score of the
answers.

L = tokens of a packed sequence, E = width of the language model, A = scored tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.errors import require
from viq.core.types import IGNORE, IMAGE_TOKEN, Grid, ViqError
from viq.models.language.heads import final_logits
from viq.models.language.packed import base_of, packed_hidden, use_packed_attention
from viq.models.language.projector import MergeProjector, ProjectorConfig
from viq.weights.checkpoint import CheckpointError
from viq.weights.pretrained import causal_of, load_pretrained


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters on all linear layers but the output head; the rest is frozen."""

    rank: int = 64
    alpha: float = 16
    dropout: float = 0.05
    dora: bool = True  # magnitude and direction apart, as the official recipe has it


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Which language model reads the features.

    With `name` it is loaded, else a Qwen2 of the shape below is built from scratch. Adapters and
    gradient checkpointing are those of a tokenizer's training; other recipes refuse them here.
    """

    name: str | None = None  # folder or hub id
    width: int = 192
    depth: int = 3
    heads: int = 3
    mlp_width: int = 512
    vocabulary: int = 2048  # of the text tokenizer that is trained with it
    initializer_range: float = 0.02  # deviation of initial weights
    adapter: AdapterConfig | None = None  # None: every weight is trained
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        untrusted.shape(self, width=2**16, depth=512, heads=1024, mlp_width=2**20,
                        vocabulary=2**20)  # fmt: skip
        if not 0 < self.initializer_range <= 1:
            raise ViqError(
                f"language: initializer_range {self.initializer_range}: use 0.02 or another number "
                "above 0, at most 1"
            )
        if self.name is None and self.width % self.heads:
            raise ViqError(f"language: width {self.width} cannot be split into {self.heads} heads")


def build_language(config: LanguageConfig, vocabulary: int) -> Any:
    """A Qwen2 with random weights, `vocabulary` tokens and tied embeddings."""
    with require("transformers", "chat", "a language model"):
        from transformers import Qwen2Config, Qwen2ForCausalLM
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            initializer_range=config.initializer_range,
            tie_word_embeddings=True,
        )
    )


def load_language(name: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model from a folder or the hub.

    Raises:
        ViqError: nothing usable under that name (`weights/pretrained.py`).
    """
    with require("transformers", "chat", "a language model"):
        from transformers import AutoModelForCausalLM
    options = {"dtype": dtype, "trust_remote_code": False}
    try:
        return load_pretrained(AutoModelForCausalLM.from_pretrained, causal_of, name, **options)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise CheckpointError(
            f"{name}: no causal language model can be loaded from there ({reason}); give a folder "
            "written by save_pretrained, or a hub id such as Qwen/Qwen2.5-0.5B"
        ) from None


def require_peft() -> Any:
    """The library of adapters.

    Raises:
        ViqError: it is not installed.
    """
    with require("peft", "train", "a language model with adapters"):
        import peft
    return peft


def add_adapters(language: Any, config: AdapterConfig) -> Any:
    """Freeze a language model, with or without its head, and give its linear layers low-rank
    adapters (peft's wrapper).

    Raises:
        ViqError: it has no layers that could have adapters, or peft is not installed.
    """
    peft = require_peft()
    names = adapter_targets(language)
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        bias="none",
        target_modules=names,
        task_type="CAUSAL_LM" if hasattr(language, "prepare_inputs_for_generation") else None,
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that it has given up
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", ".*fan_in_fan_out", UserWarning)  # it does it itself
        return peft.get_peft_model(language, wanted)


def adapter_targets(language: Any) -> list[str]:
    """Names of the linear layers of a language model but its output head. Raises `ViqError`."""
    from transformers.pytorch_utils import Conv1D  # the linear layer of GPT-2

    names = {
        name.rpartition(".")[2]
        for name, module in language.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not language.get_output_embeddings()
    }
    if not names:
        raise ViqError(f"{type(language).__name__}: has no linear layers to add adapters to")
    return sorted(names)


def recompute_activations(language: Any) -> None:
    """Keep no activations but recompute them for the backward pass: a third more time."""
    name = "activation_checkpointing_enable"  # before: gradient_checkpointing_enable
    enable = getattr(language, name, None) or language.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """What one pass over packed conversations gives.

    Attributes:
        loss_A: cross-entropy of each scored token, nats, fp32.
        correct_A: whether it was the most probable one.
    """

    loss_A: Tensor
    correct_A: Tensor


def visual_inputs(
    language: Any,
    projector: MergeProjector,
    ids_L: Tensor,
    features_TC: Tensor | None,
    grids_hw: Sequence[Grid],
) -> Tensor:
    """Input vectors (L, E): embeddings of the words, visual vectors in the places of images.

    Args:
        language: a Hugging Face language model, with or without its head, perhaps under adapters.
        projector: features to its input vectors.

    Raises:
        ViqError: the images take other than the places that the ids keep for them.
    """
    places_L = ids_L == IMAGE_TOKEN
    words_LE = language.get_input_embeddings()(ids_L.masked_fill(places_L, 0))
    if features_TC is None or not len(grids_hw):
        if places_L.any():
            raise ViqError(f"{int(places_L.sum())} places for images, but no image")
        return words_LE
    visual = torch.cat(projector(features_TC, grids_hw)).to(words_LE.dtype)
    if len(visual) != int(places_L.sum()):
        raise ViqError(
            f"{len(visual)} visual tokens of {len(grids_hw)} images, but the text keeps "
            f"{int(places_L.sum())} places for them"
        )
    return words_LE.masked_scatter(places_L[:, None], visual)


def score_answers(
    language: Any,
    head: Callable[[Tensor], Tensor],
    inputs_LE: Tensor,
    targets_L: Tensor,
    lengths: Sequence[int],
) -> AnswerScore:
    """Score the answers of packed conversations, by a language model with packed attention.

    Logits are made for scored places only: a vocabulary is wide.

    Args:
        head: hidden states (A, E) to logits.
        lengths: tokens of each conversation.
    """
    hidden_LE = packed_hidden(language, inputs_LE, lengths)
    scored_L = targets_L != IGNORE
    logits = head(hidden_LE[scored_L]).float()
    targets_A = targets_L[scored_L]
    return AnswerScore(
        loss_A=F.cross_entropy(logits, targets_A, reduction="none"),
        correct_A=logits.detach().argmax(-1) == targets_A,
    )


class VisionLanguageModel(nn.Module):
    """Projector and language model: features and text in, a score of the answers out.

    The language model is given packed attention.

    Attributes:
        own: names of the parameters that training may change: all, or projector and adapters.
    """

    def __init__(
        self,
        language: Any,
        features: int,
        merge_size: int = 2,
        *,
        whiten: bool = False,
        positions: bool = False,
    ) -> None:
        super().__init__()
        width = language.get_input_embeddings().embedding_dim
        self.projector = MergeProjector(
            ProjectorConfig(
                features=features,
                width=width,
                merge_size=merge_size,
                whiten=whiten,
                positions=positions,
            )
        )
        use_packed_attention(language)
        self.language = language
        # What training may change; the rest comes from where the language model came from.
        self.own = frozenset(n for n, p in self.named_parameters() if p.requires_grad)

    def inputs(self, ids_L: Tensor, features_TC: Tensor | None, grids_hw: Sequence[Grid]) -> Tensor:
        """Input vectors (L, E), as `visual_inputs`."""
        return visual_inputs(self.language, self.projector, ids_L, features_TC, grids_hw)

    def score(
        self,
        features_TC: Tensor | None,
        grids_hw: Sequence[Grid],
        ids_L: Tensor,
        targets_L: Tensor,
        lengths: Sequence[int],
    ) -> AnswerScore:
        """Score the answers of packed conversations of `lengths` tokens (`score_answers`)."""
        inputs_LE = self.inputs(ids_L, features_TC, grids_hw)
        base = base_of(self.language)

        def head(hidden_AE: Tensor) -> Tensor:
            return final_logits(base.get_output_embeddings()(hidden_AE), base.config)

        return score_answers(self.language, head, inputs_LE, targets_L, lengths)

    def forward(self, *args: Any, **kwargs: Any) -> AnswerScore:
        """`score`, where wrappers of modules (gradients over processes) can see it."""
        return self.score(*args, **kwargs)
