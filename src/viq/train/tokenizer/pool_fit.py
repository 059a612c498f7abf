"""Fit the pooled token to what a photo is called, so that photos are found by words.

A pretrained classifier gives the names of ImageNet's classes probabilities, and a text model gives
those names embeddings. The pooled token learns to lie near the embedding that is to be expected,
and nearer to likely names than to others. Names of the user's are met in the same space: no list of
classes stays in the tokenizer. The pooling head begins as the mean over patches. Codes and features
stay as they are.

n = photos, T = patches, S = 4 slots, C = width of features, k = classes, E = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.types import Grid, ViqError
from viq.image.patches import lengths_of, normalize
from viq.models.layers.efficientnet import STRIDE_32
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.train.in_memory import cosine_loop, train_in_memory
from viq.train.loop import LoopConfig
from viq.train.loss_terms import Objective, check_losses

_SIDE = 224  # px, of the squares that the classifier sees
_NAMES = "imagenet_names.txt"  # beside the classifier: of a class a line, synonyms by commas
_REPORT_PHOTOS = 200


@dataclass(frozen=True, kw_only=True)
class PoolFitConfig:
    """How the pooled token is trained. The defaults take three minutes of one core for 2,500
    photos, besides encoding these."""

    steps: int = 1500
    images: int = 16  # a step
    kept: float = 0.5  # of a photo's patches, at least: random ones are left out
    losses: dict[str, float] = field(default_factory=lambda: {"classes": 1.0, "embedding": 2.0})
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        untrusted.shape(self, steps=2**24, images=4096)
        untrusted.ratio(self, "kept", 1.0)
        untrusted.ratio(self, "learning_rate", 1.0)
        check_losses("pooled token", self.losses, PoolObjective.counted_in)

    def loop(self) -> LoopConfig:
        """As the training loop takes it, logging ten times."""
        return cosine_loop(
            self.steps, self.losses, self.learning_rate, warmup_ratio=0.05, weight_decay=0.05,
            records=10,
        )  # fmt: skip


def class_names() -> list[list[str]]:
    """The names of each of ImageNet's 1,000 classes: lemmas of WordNet 3.0, the usual one first."""
    text = (files("viq.models.vision") / _NAMES).read_text(encoding="utf-8")
    return [[name.strip() for name in line.split(",")] for line in text.splitlines()]


def class_embeddings(sentences: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """Unit vectors (k, E): of each class the mean of those of its names."""
    found = [sentences(names).mean(0) for names in class_names()]
    return F.normalize(torch.stack(found), dim=-1)


def fit_pool(
    tokenizer: VisualTokenizer,
    images: Iterable[Image.Image],
    sentences: Callable[[Sequence[str]], Tensor],
    config: PoolFitConfig | None = None,
    network: EfficientNetLite0 | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Train pooling and text head of a tokenizer in place; deterministic on one machine.

    Args:
        images: RGB photos; each is opened once, and none is kept.
        sentences: texts to unit vectors (n, E) of the text model that the config names.
        network: the classifier; None: that of the package.
        report: called with records of progress.

    Raises:
        ViqError: no photos, no text head, embeddings of another width than it has, or the package
            of the network is missing.
    """
    config = config or PoolFitConfig()
    if tokenizer.text_head is None:
        raise ViqError(f"{tokenizer.config.name}: has no text head to train")
    names_kE = class_embeddings(sentences)
    if names_kE.shape[1] != tokenizer.text_head.out_features:
        raise ViqError(
            f"sentence embeddings have {names_kE.shape[1]} numbers, but the text head of "
            f"{tokenizer.config.name} {tokenizer.text_head.out_features}: set text.width"
        )
    network = (network or EfficientNetLite0.from_package()).requires_grad_(False).eval()
    photos = _coded(tokenizer, images, network, report)
    if not photos:
        raise ViqError("no photos: the pooled token learns from some")
    torch.manual_seed(config.seed)
    _mean_of_patches(tokenizer)
    objective = PoolObjective(tokenizer, names_kE)
    train_in_memory(
        objective, _batches(photos, config), config.loop(), name="pooled token", seed=config.seed,
        log=report,
    )  # fmt: skip
    tokenizer.requires_grad_(False).eval()


@dataclass(frozen=True, kw_only=True)
class _Photo:
    """Codes (T, S), their grid, and the probabilities (k,) of classes, in halves."""

    ids_TS: Tensor
    grid: Grid
    classes_k: Tensor


@torch.inference_mode()
def _coded(
    tokenizer: VisualTokenizer,
    images: Iterable[Image.Image],
    network: EfficientNetLite0,
    report: Callable[[dict[str, Any]], None],
) -> list[_Photo]:
    photos = []
    for number, image in enumerate(images, 1):
        codes = tokenizer.encode(image)[0]
        square = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        seen = network(normalize(np.asarray(square))[None], (STRIDE_32,))[0]
        ids = torch.from_numpy(codes.ids.astype(np.int32)).flatten(0, 1)
        classes_k = network.classify(seen)[0].softmax(0).half()
        with torch.inference_mode(False):  # inference tensors cannot take part in training
            photos.append(_Photo(ids_TS=ids.clone(), grid=codes.grid, classes_k=classes_k.clone()))
        if number % _REPORT_PHOTOS == 0:
            report({"photos": number})
    return photos


@torch.no_grad()
def _mean_of_patches(tokenizer: VisualTokenizer) -> None:
    """Begin as the mean: equal attention to all patches, their features as they are."""
    head, width = tokenizer.pool_head, tokenizer.width
    tokenizer.requires_grad_(False)
    for parameter in (*head.q.parameters(), head.kv.weight, head.kv.bias, head.proj.bias):
        parameter.zero_()
    head.kv.weight[width:].copy_(torch.eye(width))
    head.proj.weight.copy_(torch.eye(width))
    nn.init.normal_(head.q.weight, std=0.02)
    for parameter in head.mlp.fc2.parameters():
        parameter.zero_()
    for part in (tokenizer.pool_norm, head, tokenizer.text_head):
        assert part is not None
        part.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class PoolBatch:
    """Codes of some photos, which of their patches are kept, and what the classifier says."""

    ids_TS: Tensor
    grids_hw: tuple[Grid, ...]
    kept_T: Tensor  # bool
    classes_nk: Tensor

    @property
    def counts(self) -> dict[str, int]:
        return {"images": len(self.grids_hw)}

    def to(self, device: torch.device) -> PoolBatch:
        """The same on another device."""
        return PoolBatch(
            ids_TS=self.ids_TS.to(device),
            grids_hw=self.grids_hw,
            kept_T=self.kept_T.to(device),
            classes_nk=self.classes_nk.to(device),
        )


class PoolObjective(Objective):
    """Pooled tokens against the embeddings of class names."""

    names_kE: Tensor

    counted_in = {
        "classes": "images",  # KL divergence in nats from the classifier's probabilities
        "embedding": "images",  # 1 - cosine similarity to the expected embedding
    }

    def __init__(self, tokenizer: VisualTokenizer, names_kE: Tensor) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.register_buffer("names_kE", names_kE.clone())

    def forward(self, batch: PoolBatch) -> dict[str, Tensor]:
        """Sums over photos of each term."""
        tokenizer, lengths = self.tokenizer, lengths_of(batch.grids_hw)
        with torch.no_grad():
            features_TC = tokenizer.features(batch.ids_TS, batch.grids_hw)[batch.kept_T]
            left = [int(kept.sum()) for kept in batch.kept_T.split(lengths)]
        pooled_nC = tokenizer.pool_head(tokenizer.pool_norm(features_TC), left)
        embeds_nE = tokenizer.embedded(pooled_nC)
        expected_nE = F.normalize(batch.classes_nk @ self.names_kE, dim=-1)
        logits_nk = embeds_nE @ self.names_kE.T * self.log_scale.exp()
        return {
            "classes": F.kl_div(logits_nk.log_softmax(-1), batch.classes_nk, reduction="sum"),
            "embedding": (1 - (embeds_nE * expected_nE).sum(-1)).sum(),
        }


def _batches(photos: Sequence[_Photo], config: PoolFitConfig) -> Iterator[PoolBatch]:
    """Photos in a new order each time, some of their patches left out, endlessly."""
    rng = np.random.default_rng(config.seed)
    order: list[int] = []
    while True:
        while len(order) < config.images:
            order += rng.permutation(len(photos)).tolist()
        chosen, order = [photos[i] for i in order[: config.images]], order[config.images :]
        kept = []
        for photo in chosen:
            count = photo.grid[0] * photo.grid[1]
            mask = rng.random(count) < rng.uniform(config.kept, 1)
            mask[rng.integers(count)] = True
            kept.append(torch.from_numpy(mask))
        yield PoolBatch(
            ids_TS=torch.cat([photo.ids_TS for photo in chosen]).long(),
            grids_hw=tuple(photo.grid for photo in chosen),
            kept_T=torch.cat(kept),
            classes_nk=torch.stack([photo.classes_k for photo in chosen]).float(),
        )
