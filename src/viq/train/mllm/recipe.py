"""A multimodal language model and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from viq.core.files import DEFAULT_MODEL
from viq.core.types import ViqError
from viq.data.batching.code_batches import (
    CodeDataConfig,
)
from viq.data.corpora.synthetic_config import SyntheticConfig
from viq.models.language.vision_language import (
    AdapterConfig,
    LanguageConfig,
)
from viq.train.loop import LoopConfig
from viq.train.loss_terms import check_losses
from viq.train.observer import (
    check_language,
    check_stage_names,
)

PARTS = ("embedder", "projector", "language")
TERMS = {"text": "answers", "correct": "answers"}  # of the loss: what each is divided by
METRICS = {"correct": "answer_accuracy"}  # of those that are only logged: their names in the log


@dataclass(frozen=True, kw_only=True)
class MllmStage:
    """One stage: what is trained, on what.

    Attributes:
        parts: of `PARTS`, what is trained; everything else is frozen.
        new: parts that no earlier stage trained, for `optim.new_module_lr`.
        adapter: train low-rank adapters of the language model instead of its weights; they are
            added to the weights at the end of the stage.
    """

    name: str
    parts: tuple[str, ...] = ("projector", "language")
    new: tuple[str, ...] = ()
    adapter: AdapterConfig | None = None
    data: CodeDataConfig
    loop: LoopConfig
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted({*self.parts, *self.new} - set(PARTS)):
            raise ViqError(f"{self.name}: no parts {unknown}: choose from {', '.join(PARTS)}")
        check_losses(self.name, self.loop.losses, TERMS.keys() - METRICS.keys())
        if self.adapter and "language" not in self.parts:
            raise ViqError(f"{self.name}: adapters train the language model: add it to parts")


@dataclass(frozen=True, kw_only=True)
class MllmRecipe:
    """A multimodal language model and how it is trained. JSON of this is a recipe file.

    Attributes:
        tokenizer: whose codes it reads: a folder, a bundled name, or a hub id.
        language: what reads them; adapters and gradient checkpointing are of the stages.
        merge_size: patches a side of a visual token.
        image_positions: visual tokens are told their row and column (`ViQConfig`).
        start: a trained model that training goes on from, in place of the parts that `language`,
            `merge_size` and `image_positions` describe: a bundled name, a folder, or a hub id.
        synthetic: pictures that are drawn and encoded where no store is given; None: never.
    """

    name: str
    stages: tuple[MllmStage, ...]
    tokenizer: str = DEFAULT_MODEL
    language: LanguageConfig = field(default_factory=LanguageConfig)
    merge_size: int = 2
    image_positions: bool = False
    start: str | None = None
    synthetic: SyntheticConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_stage_names(self.name, [stage.name for stage in self.stages])
        check_language(self.name, self.language)
        if self.start is not None and self.language.name is not None:
            raise ViqError(
                f"recipe {self.name}: start {self.start} has a language model of its own: "
                f"leave out {self.language.name}"
            )
