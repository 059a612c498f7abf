"""A model that generates images and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from viq.core.types import Size, ViqError
from viq.models.language.vision_language import LanguageConfig
from viq.train.loop import LoopConfig
from viq.train.loss_terms import check_losses
from viq.train.observer import check_language

# Of the loss: what each term is divided by. `next` is the sum of the other two.
TERMS = {"next": "scored", "text": "answers", "codes": "patches"}


@dataclass(frozen=True, kw_only=True)
class GenerationRecipe:
    """A model that draws, and how it is trained. JSON of this is a recipe file.

    Attributes:
        tokenizer: whose codes it writes: a bundled name, a folder, or a hub id.
        language: what writes them, all of it trained.
        pictures: drawn for training where no file of codes is given.
        uses: 0: those are encoded first, and trained on again and again. Else new ones are drawn
            and encoded as training goes on, each of which is used about so many times.
        size: of those, (height, width) px.
        samples: in a micro-batch.
        gradient_accumulation: micro-batches a step, shared by all processes.
        caption_ratio: share of samples that describe a picture instead of drawing it.
        caption_dropout: share of drawings whose caption is left out, which guidance needs.
    """

    name: str
    loop: LoopConfig
    tokenizer: str = "viq-tiny"
    language: LanguageConfig = field(default_factory=LanguageConfig)
    head_width: int = 128
    pictures: int = 6000
    uses: int = 0
    size: Size = (96, 96)
    samples: int = 32
    gradient_accumulation: int = 1
    caption_ratio: float = 0.1
    caption_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_language(self.name, self.language)
        check_losses(f"recipe {self.name}", self.loop.losses, TERMS)
        if min(self.pictures, self.samples, self.gradient_accumulation) < 1:
            raise ViqError(
                f"recipe {self.name}: pictures, samples and gradient_accumulation must be 1 or more"
            )
        if self.uses < 0:
            raise ViqError(f"recipe {self.name}: uses must be 0 or more")
