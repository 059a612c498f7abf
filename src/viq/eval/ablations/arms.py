"""What is compared: the arms, each one choice away from `base`, and the claims about them.

Everything here is fixed before the runs, and is what docs/ablations.md writes down: budgets,
measures, and the rule of the verdicts (verdict.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from viq.core.levels import PRESETS
from viq.core.types import ViqError
from viq.eval.probes.benchmark import ProbeConfig
from viq.models.language.vision_language import LanguageConfig
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.tokenizer import TokenizerConfig

Bound = Literal["linf", "l2", "batch"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train a tokenizer; the defaults are the paper's choices.

    Attributes:
        proximal: a proximal stage comes between alignment and codes; else its steps go to codes.
        bound: of the proximal stage: unit ball, or batch norm without scale and shift.
        quantizer: of the last stage.
        rope: 2D rotary positions in the position-aware blocks of the last stage.
        distill, reconstruct: whether these losses are there beside the text loss.
    """

    name: str
    proximal: bool = True
    bound: Bound = "linf"
    quantizer: Literal["fsq", "simvq"] = "fsq"
    rope: bool = True
    distill: bool = True
    reconstruct: bool = True


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="base"),
        Arm(name="straight", proximal=False),
        Arm(name="text", distill=False, reconstruct=False),
        Arm(name="no-reconstruction", reconstruct=False),
        Arm(name="no-position", rope=False),
        Arm(name="simvq", quantizer="simvq"),
        Arm(name="l2", bound="l2"),
        Arm(name="batch-norm", bound="batch"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`better` against `worse` on one outcome measure.

    Attributes:
        ablation: its name in `--only`; an ablation may have several claims.
        says: the claim in words.
        outcome: a measure of measures.py; percent, or dB.
        margin: None: the claim is that `better` is larger. A number: that it is no smaller by more
            than this.
    """

    ablation: str
    says: str
    better: str
    worse: str
    outcome: str = "understanding"
    margin: float | None = None


_NO_LOSS = 1.0  # points of percent
CLAIMS = (
    Claim(ablation="proximal", says="proximal stage, then FSQ > straight to FSQ",
          better="base", worse="straight"),
    Claim(ablation="distill", says="text + self-distillation > text alone",
          better="no-reconstruction", worse="text"),
    Claim(ablation="reconstruction", says="+ reconstruction: no loss of understanding",
          better="base", worse="no-reconstruction", margin=_NO_LOSS),
    Claim(ablation="reconstruction", says="+ reconstruction: more of the pixels",
          better="base", worse="no-reconstruction", outcome="kodak_db"),
    Claim(ablation="rope", says="2D RoPE > no position, questions of place and count",
          better="base", worse="no-position", outcome="looked"),
    Claim(ablation="simvq", says="FSQ >= SimVQ at equal bits",
          better="base", worse="simvq", margin=_NO_LOSS),
    Claim(ablation="limit", says="L-infinity >= L2 bottleneck",
          better="base", worse="l2", margin=_NO_LOSS),
    Claim(ablation="limit", says="L-infinity >= batch norm in its place",
          better="base", worse="batch-norm", margin=_NO_LOSS),
)  # fmt: skip
# Section 2 of docs/ablations.md: what the reader sees of the base arm's pictures.
FEATURES = ("codes", "continuous", "teacher", "blind")
CONTINUOUS, ROPE = "continuous", "rope"  # names of ablations in `--only`
FEATURE_CLAIM = Claim(
    ablation=CONTINUOUS, says="codes within 2 points of their own continuous features",
    better="codes", worse="continuous", outcome="reader", margin=2.0,
)  # fmt: skip
ABLATIONS = tuple(dict.fromkeys([*(claim.ablation for claim in CLAIMS), CONTINUOUS]))


def arms_of(ablations: tuple[str, ...]) -> list[Arm]:
    """The arms that some ablations need, in the order of `ARMS`.

    Raises:
        ViqError: there is no such ablation.
    """
    if unknown := sorted(set(ablations) - set(ABLATIONS)):
        raise ViqError(f"--only {unknown[0]}: choose from {', '.join(ABLATIONS)}")
    named = {n for c in CLAIMS if c.ablation in ablations for n in (c.better, c.worse)}
    if CONTINUOUS in ablations:
        named.add("base")
    return [arm for arm in ARMS.values() if arm.name in named]


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Sizes and budgets, the same for every arm.

    Attributes:
        max_side: px; pictures are shrunk to this area squared.
        larger: sides, px, of pictures that nothing was trained on (place and count).
        drawn: pictures drawn to train on: a third each of one shape, counted shapes, charts.
        drawn_test, larger_test: drawn pictures that are held out, of each third.
        photos: at most so many photos with names.
        seen: channels a patch of the pretrained network's features that the encoder reads.
        pictures_a_step: half photos, half drawn, as far as there are photos.
        align, proximal, codes: steps of the stages 1, 2-1 and 2-2.
        language: the reader of training, from nothing.
        exam: the reader that `continuous` trains on frozen features (`eval/probes/`).
        looking: pictures of one shape, and as many of several, that a reader of its own is trained
            on for `rope`: where, and how many.
        looking_exam: this reader.
    """

    name: str = "short"
    max_side: int = 80
    larger: tuple[int, int] = (112, 160)
    drawn: int = 1200
    drawn_test: int = 160
    larger_test: int = 160
    photos: int = 2400
    seen: int = 96
    pictures_a_step: int = 16
    align: int = 150
    proximal: int = 80
    codes: int = 160
    learning_rate: float = 1.5e-3
    losses: dict[str, float] = field(
        default_factory=lambda: {"text": 1.0, "distill": 2.0, "rmse": 2.0}
    )
    levels: tuple[int, ...] = PRESETS["4k"]
    width: int = 64
    depth: int = 1
    language: LanguageConfig = LanguageConfig(
        width=128, depth=2, heads=2, mlp_width=256, vocabulary=800
    )
    exam: ProbeConfig = ProbeConfig(
        max_side=80, steps=1500, tokens=640, learning_rate=1e-3, seeds=1,
        language=LanguageConfig(width=128, depth=2, heads=2, mlp_width=256, vocabulary=800,
                                initializer_range=0.09),
    )  # fmt: skip
    looking: int = 3000
    looking_exam: ProbeConfig = ProbeConfig(
        max_side=80, steps=1500, tokens=640, learning_rate=1e-3, seeds=1, positions=True,
        language=LanguageConfig(width=128, depth=2, heads=2, mlp_width=256, vocabulary=400,
                                initializer_range=0.09),
    )  # fmt: skip

    def model(self, arm: Arm, bottleneck: Literal["proximal", "fsq"]) -> TokenizerConfig:
        """Shape of the tokenizer of an arm in a stage with this bottleneck.

        Batch norm and SimVQ are not of the config: `model.make` puts them in.
        """
        return TokenizerConfig(
            name="ablation",
            encoder=EncoderConfig(
                width=self.width, depth=self.depth, heads=2, mlp_width=2 * self.width,
                position_grid=8,
            ),
            quantizer=QuantizerConfig(
                bottleneck=bottleneck, levels=self.levels, proximal_width=32, heads=2, pre_depth=1,
                slot_depth=1, slot_attention_width=32, slot_mlp_ratio=1, post_depth=1,
                proximal_limit="l2" if arm.bound == "l2" else "linf",
                rope_angle_dtype="float32" if arm.rope else "none",
            ),
            decoder=DecoderConfig(width=self.width, depth=2),
        )  # fmt: skip


def debug() -> AblationConfig:
    """Every part in seconds: for tests and first steps. Its figures say nothing."""
    return AblationConfig(
        name="debug", max_side=48, larger=(56, 64), drawn=30, drawn_test=4, larger_test=4,
        photos=200, seen=8, pictures_a_step=4, align=2, proximal=2, codes=3, width=32,
        levels=(4, 4),
        language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=400),
        exam=ProbeConfig(
            max_side=48, steps=3, tokens=200, seeds=1,
            language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=400),
        ),
        looking=4,
        looking_exam=ProbeConfig(
            max_side=48, steps=3, tokens=200, seeds=1, positions=True,
            language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=400),
        ),
    )  # fmt: skip


SIZES = {"short": AblationConfig, "debug": debug}
