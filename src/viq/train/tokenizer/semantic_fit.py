"""Fit the codes of meaning: what a small pretrained network sees, in one code a 2x2 group.

Features of all photos are computed once and kept in memory, as halves. The start is in closed
form: of the features' directions, those that tell most of the teacher's class logits, dealt to the
phases of groups. Then the encoder is trained together with a reader of codes: from their values
alone it has to give the features back, and the teacher's classes. The first
steps have the tanh bound alone, the rest round as FSQ does; some see features as those of large
pictures are, which the encoder halves. Minutes on one core.

n = images, h, w = rows and columns of groups, g = groups of many images, I = numbers of the trunk a
group, 432, k = ImageNet's classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.types import PATCH_SIZE, ViqError
from viq.image.patches import normalize
from viq.models.layers.efficientnet import STRIDE_16, WIDTHS
from viq.models.tokenizer.semantic import (
    GROUP,
    INPUTS,
    PHASES,
    SemanticConfig,
    SemanticEncoder,
    SemanticReader,
    SemanticValues,
    phases_of,
)
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.train.in_memory import cosine_loop, train_in_memory
from viq.train.loop import LoopConfig
from viq.train.loss_terms import Objective, check_losses

_FINE = WIDTHS[STRIDE_16]  # the first of a group's numbers are of stride 16, the rest of 32
_GROUP_PX = GROUP * PATCH_SIZE
_LEAST = 32  # photos: fewer do not span the 24 directions
_REPORT_PHOTOS = 200


@dataclass(frozen=True, kw_only=True)
class SemanticFitConfig:
    """Shape, data and training of a semantic encoder. The defaults take eight minutes of one core
    for 2,500 photos: three and a half are the trunk, once for each view."""

    model: SemanticConfig = field(default_factory=SemanticConfig)
    side: int = 224  # px; views of photos are squares
    crops: int = 1  # random ones of each photo, beside the whole photo
    least_crop: float = 0.65  # of the shorter side
    ridge: float = 0.05  # of the regression that gives the start
    spread: float = 0.8  # deviation of the values before FSQ at the start
    steps: int = 9000  # 0: the start alone
    images: int = 4  # a step; of halved views fewer, but one at least
    halved: tuple[float, float] = (0.25, 0.08)  # of the steps: halved once, and twice
    unrounded: float = 0.4  # of the steps, at the beginning: tanh alone
    losses: Mapping[str, float] = field(
        # 0.8: 0.3 of the variance that means of a photo's standardised features have, 0.377
        default_factory=lambda: {"coarse": 1.0, "fine": 0.5, "pooled": 0.8, "classes": 0.2}
    )
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        untrusted.shape(self, side=4096, images=4096)
        object.__setattr__(self, "halved", tuple(self.halved))
        if len(self.halved) != 2 or min(self.halved) < 0 or sum(self.halved) > 1:
            raise ValueError(f"halved {self.halved}: two shares of the steps, 1 together at most")
        untrusted.whole_number(self.crops, "crops", 0, 1000)
        untrusted.whole_number(self.steps, "steps", 0)
        if self.side % _GROUP_PX:
            raise ValueError(f"side {self.side} must be a multiple of {_GROUP_PX} px")
        untrusted.ratio(self, "least_crop", 1.0)
        untrusted.ratio(self, "spread")
        untrusted.ratio(self, "ridge")
        untrusted.ratio(self, "learning_rate", 1.0)
        if not 0 <= self.unrounded <= 1:
            raise ValueError(f"unrounded {self.unrounded} is a share of the steps, from 0 to 1")
        check_losses("semantic codes", self.losses, SemanticObjective.counted_in)

    def loop(self) -> LoopConfig:
        """As the training loop takes it, logging twenty times."""
        return cosine_loop(
            self.steps, self.losses, self.learning_rate, warmup_ratio=0.04, weight_decay=0.02,
            records=20,
        )  # fmt: skip


def fit_semantic(
    images: Iterable[Image.Image],
    config: SemanticFitConfig | None = None,
    network: EfficientNetLite0 | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> tuple[SemanticEncoder, SemanticReader]:
    """Fit an encoder of meaning and a reader to photos; deterministic on one machine.

    Args:
        images: RGB; each is opened once, and none is kept. Photos that are to tell what the codes
            are worth do not belong here (`data/corpora/held_out.py`).
        network: the teacher, whose trunk the encoder gets; None: that of the package.
        report: called with records of progress.

    Returns:
        The encoder and the reader of its codes, frozen, float32, in eval mode.

    Raises:
        ViqError: too few photos, or the package of the network is missing.
    """
    config = config or SemanticFitConfig()
    network = (network or EfficientNetLite0.from_package()).requires_grad_(False).eval()
    torch.manual_seed(config.seed)
    encoder = SemanticEncoder(config.model).requires_grad_(False).eval()
    encoder.trunk.load_state_dict(network.trunk.state_dict())
    features = Features.of(_views(images, config), encoder, network, report)
    start(encoder, features, config)
    objective = SemanticObjective(encoder, network, config)
    if config.steps:
        train_in_memory(
            objective, _batches(features, config), config.loop(), name="semantic codes",
            seed=config.seed, log=report,
        )  # fmt: skip
    return encoder.requires_grad_(False).eval(), objective.reader.requires_grad_(False).eval()


@dataclass(frozen=True)
class Features:
    """What the trunk sees in the views of all photos, in halves.

    Attributes:
        groups_nhwI: numbers of each group, in the units of the trunk.
        logits_nk: the teacher's, of ImageNet's classes.
    """

    groups_nhwI: Tensor
    logits_nk: Tensor

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        views: Iterable[list[Tensor]],
        encoder: SemanticEncoder,
        network: EfficientNetLite0,
        report: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> Features:
        """Of the views of each photo, (3, H, W) each, all of one size.

        Raises:
            ViqError: too few photos.
        """
        groups, logits = [], []
        for number, views_3HW in enumerate(views, 1):
            found_nhwI = encoder.features(torch.stack(views_3HW))
            coarse_nChw = found_nhwI[..., _FINE:].permute(0, 3, 1, 2)
            groups.append(found_nhwI.half())
            logits.append(network.classify(coarse_nChw).half())
            if number % _REPORT_PHOTOS == 0:
                report({"photos": number})
        if len(groups) < _LEAST:
            raise ViqError(f"{len(groups)} photos: codes of meaning need at least {_LEAST}")
        # Inference tensors cannot take part in training: copies made outside can.
        with torch.inference_mode(False):
            return cls(torch.cat(groups).clone(), torch.cat(logits).clone())


@torch.no_grad()
def start(encoder: SemanticEncoder, features: Features, config: SemanticFitConfig) -> None:
    """Set what training begins from: the means and deviations of features, and the linear map.

    Its 24 directions are the main ones of the teacher's logits as a ridge regression predicts them
    from pooled features. The strongest four go to the first dimension of the four phases, and so
    on, so that every phase tells of all that matters most.
    """
    mean, covariance, pooled_nI = _moments(features.groups_nhwI)
    deviation = covariance.diagonal().sqrt() + 1e-5
    encoder.mean.copy_(mean)
    encoder.deviation.copy_(deviation)
    x_nI = (pooled_nI - pooled_nI.mean(0)) / deviation
    y_nk = features.logits_nk.double()
    y_nk = y_nk - y_nk.mean(0)
    y_nk = y_nk - y_nk.mean(1, keepdim=True)
    inner = x_nI.T @ x_nI + config.ridge * len(x_nI) * torch.eye(INPUTS, dtype=x_nI.dtype)
    regression_Ik = torch.linalg.solve(inner, x_nI.T @ y_nk)
    predicted_nk = x_nI @ regression_Ik
    _, main_kv = torch.linalg.eigh(predicted_nk.T @ predicted_nk)  # ascending
    directions = regression_Ik @ main_kv.flip(1)[:, : encoder.values.width]
    scaled = covariance / deviation / deviation[:, None]
    spread = (directions * (scaled @ directions)).sum(0).clamp(min=1e-12).sqrt()
    directions = directions / spread * config.spread
    dealt = directions.unflatten(1, (-1, PHASES)).mT.flatten(1)  # to phases, then dimensions
    encoder.linear.weight.copy_(dealt.T)
    # In the middle between the levels: FSQ shifts dimensions of an even number of levels.
    encoder.linear.bias.copy_(-torch.tensor(encoder.values.fsq.shift * PHASES))


def _moments(groups_nhwI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (I,) and covariance (I, I) over groups, and means (n, I) of images, in float64."""
    total = torch.zeros(INPUTS, dtype=torch.float64)
    products = torch.zeros(INPUTS, INPUTS, dtype=torch.float64)
    pooled = []
    for some in groups_nhwI.split(64):
        x_gI = some.flatten(0, 2).double()
        total += x_gI.sum(0)
        products += x_gI.T @ x_gI
        pooled.append(some.double().mean((1, 2)))
    groups = groups_nhwI[..., 0].numel()
    mean = total / groups
    return mean, products / groups - mean * mean[:, None], torch.cat(pooled)


@dataclass(frozen=True, kw_only=True)
class SemanticBatch:
    """Features of some views, what the teacher calls them, and whether codes are rounded yet."""

    groups_nhwI: Tensor
    logits_nk: Tensor
    rounded: bool

    @property
    def counts(self) -> dict[str, int]:
        n, rows, columns, _ = self.groups_nhwI.shape
        return {"images": n, "groups": n * rows * columns}

    def to(self, device: torch.device) -> SemanticBatch:
        """The same on another device."""
        return SemanticBatch(
            groups_nhwI=self.groups_nhwI.to(device),
            logits_nk=self.logits_nk.to(device),
            rounded=self.rounded,
        )


class SemanticObjective(Objective):
    """An encoder of meaning, and a reader that gives back what the encoder saw."""

    counted_in = {
        "coarse": "groups",  # squared error of standardised features of stride 32
        "fine": "groups",  # of stride 16
        "pooled": "images",  # of the means of an image, stride 32
        "classes": "images",  # KL divergence in nats of the classes that the teacher's head reads
    }

    def __init__(
        self, encoder: SemanticEncoder, teacher: EfficientNetLite0, config: SemanticFitConfig
    ) -> None:
        super().__init__()
        self.encoder, self.teacher = encoder, teacher
        for part in (encoder.linear, encoder.hidden, encoder.correction):
            part.requires_grad_(True)
        self.reader = SemanticReader(encoder.values.width, config.model.reader)
        self.features: nn.Module = nn.Linear(config.model.reader, INPUTS)

    def forward(self, batch: SemanticBatch) -> dict[str, Tensor]:
        """Sums over groups or images of each term."""
        encoder = self.encoder
        target_nhwI = encoder.standardised(batch.groups_nhwI.float())
        given_nhwI = self.features(self.reader(self._values(target_nhwI, batch.rounded)))
        error_nhwI = (given_nhwI - target_nhwI).square()
        coarse = given_nhwI[..., _FINE:]
        pooled = coarse.mean((1, 2)) - target_nhwI[..., _FINE:].mean((1, 2))
        own_units = coarse * encoder.deviation[_FINE:] + encoder.mean[_FINE:]
        read = self.teacher.classify(own_units.permute(0, 3, 1, 2))
        return {
            "coarse": error_nhwI[..., _FINE:].mean(-1).sum(),
            "fine": error_nhwI[..., :_FINE].mean(-1).sum(),
            "pooled": pooled.square().mean(-1).sum(),
            "classes": F.kl_div(
                read.log_softmax(-1), batch.logits_nk.float().log_softmax(-1),
                log_target=True, reduction="sum",
            ),
        }  # fmt: skip

    def _values(self, x_nhwI: Tensor, rounded: bool) -> Tensor:
        """The 24 values of each group, as a reader of codes has them."""
        fsq, z = self.encoder.values.fsq, self.encoder.pick(x_nhwI)
        values = fsq.quantize(z) if rounded else fsq.unrounded(z)
        phases = phases_of(*z.shape[1:3], device=z.device)
        return SemanticValues.scatter(values, phases.expand(z.shape[:3]))


def _batches(features: Features, config: SemanticFitConfig) -> Iterator[SemanticBatch]:
    """Views at random, half of them mirrored, endlessly.

    A view of a picture that is halved has the same features in 2x2 groups, or in 4x4.
    """
    rng = np.random.default_rng(config.seed)
    once, twice = config.halved
    step = 0
    while True:
        repeats = int(rng.choice([1, 2, 4], p=[1 - once - twice, once, twice]))
        count = max(1, config.images // repeats)
        chosen = torch.from_numpy(rng.integers(0, len(features.groups_nhwI), count))
        groups_nhwI = features.groups_nhwI[chosen]
        groups_nhwI = groups_nhwI.repeat_interleave(repeats, 1).repeat_interleave(repeats, 2)
        yield SemanticBatch(
            groups_nhwI=groups_nhwI.flip(2) if rng.random() < 0.5 else groups_nhwI,
            logits_nk=features.logits_nk[chosen],
            rounded=step >= config.unrounded * config.steps,
        )
        step += 1


def _views(images: Iterable[Image.Image], config: SemanticFitConfig) -> Iterator[list[Tensor]]:
    """Of each photo: the whole of it, squeezed into a square, and square crops; (3, H, W) each."""
    rng = np.random.default_rng(config.seed)
    for image in images:
        width, height = image.size
        square = (config.side, config.side)
        boxes = [(0.0, 0.0, float(width), float(height))]
        for _ in range(config.crops):
            side = min(width, height) * rng.uniform(config.least_crop, 1)
            x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
            boxes.append((x, y, x + side, y + side))
        yield [
            normalize(np.asarray(image.resize(square, Image.Resampling.BICUBIC, box)))
            for box in boxes
        ]
