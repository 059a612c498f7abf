"""Fit the entropy model of a tokenizer to codes of photos.

    viq train entropy --model FOLDER --data PHOTOS

Transform codes get tables (`class_tables.py`), by counting. FSQ codes get the network of
`viq.codec.level_network`: in floats, trained by the bits it spends, then rounded to integers, a few
minutes on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.codec.class_tables import ClassTables
from viq.codec.entropy_model import EntropyModel
from viq.codec.layout import CAP, EXACT, VALUE_UNIT, WEIGHT_UNIT, Layout
from viq.codec.level_network import LevelNetwork
from viq.core.codes import Codes
from viq.core.files import BUNDLED
from viq.core.types import CodesError, ViqError
from viq.data.sources.access import Access
from viq.data.sources.open import concatenate, open_source
from viq.image.open import ImageInput
from viq.models.tokenizer.counted import parts_of
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_quantizer import TransformQuantizer
from viq.store.folder import JOB, PARQUET, Store
from viq.store.rows import CodesReader
from viq.train.class_tables import fit_class_tables
from viq.train.counted_tables import fit_counted_tables
from viq.train.in_memory import train_in_memory
from viq.train.loop import LoopConfig
from viq.train.loss_terms import Objective
from viq.train.optim import OptimConfig

_HELD_OUT = 20  # one image in so many is not trained on, and tells what the model is worth
_REPORT_PICTURES = 200


@dataclass(frozen=True, kw_only=True)
class EntropyConfig:
    """Shape and training of an entropy model."""

    hidden: int = 192
    depth: int = 2  # layers of the context network
    steps: int = 8000
    patches: int = 384  # a step
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    decay_ratio: float = 0.6  # of the steps, at the end, in which the rate falls to zero
    seed: int = 0

    def loop(self) -> LoopConfig:
        """As the training loop takes it, logging twenty times."""
        return LoopConfig(
            steps=self.steps,
            losses={"nats": 1.0},
            optim=OptimConfig(
                learning_rate=self.learning_rate,
                schedule="linear",
                warmup_ratio=self.warmup_steps / self.steps,
                decay_ratio=self.decay_ratio,
                min_lr_ratio=0.0,
                weight_decay=1e-3,
            ),
            log_every=max(1, self.steps // 20),
        )


@dataclass(frozen=True, kw_only=True)
class TablesFitConfig:
    """What tables of a transform code are fitted to.

    Attributes:
        pictures: at most, where a stage of a recipe fits them.
        counted: of a tokenizer with a refinement, one picture in so many is also encoded with
            counts, at one of `rates`, in turn.
        rates: bits a pixel.
        seed: which pictures.
    """

    pictures: int = 1500
    counted: int = 5
    rates: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", tuple(self.rates))
        if min(self.pictures, self.counted) < 1 or not self.rates or min(self.rates) <= 0:
            raise ViqError("tables need at least one picture, and rates above 0")


@dataclass(frozen=True, kw_only=True)
class EntropyBatch:
    """Patches of any images: values (T, I) of the neighbours of each, and its levels (T, K)."""

    values_TI: Tensor
    levels_TK: Tensor

    @property
    def counts(self) -> dict[str, int]:
        return {"levels": self.levels_TK.numel(), "patches": len(self.levels_TK)}

    def to(self, device: torch.device) -> EntropyBatch:
        """The same on another device."""
        return EntropyBatch(
            values_TI=self.values_TI.to(device), levels_TK=self.levels_TK.to(device)
        )


class EntropyNetwork(Objective):
    """The network of `LevelNetwork` in floats; T patches, K levels each, of at most l values."""

    counted_in = {"nats": "levels"}

    def __init__(self, sizes: np.ndarray, inputs: int, config: EntropyConfig) -> None:
        super().__init__()
        d, wide, h = len(sizes), int(sizes.max()), config.hidden
        widths = [inputs] + [h] * config.depth
        self.context = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.embed = nn.Parameter(torch.randn(d, wide, h) * 0.05)
        self.head = nn.Parameter(torch.randn(d, wide, h) * 0.02)
        self.head_bias = nn.Parameter(torch.zeros(d, wide))
        self.register_buffer("absent", torch.arange(wide) >= torch.from_numpy(sizes)[:, None])

    def forward(self, batch: EntropyBatch) -> dict[str, Tensor]:
        """Sum of nats of all levels."""
        self.clip_weights()
        x, levels_TK = batch.values_TI, batch.levels_TK
        for i, layer in enumerate(self.context):
            x = layer(x if i == 0 else _clip(x))
        known_TKU = self.embed[torch.arange(len(self.embed)), levels_TK]
        before_TKU = F.pad(known_TKU, (0, 0, 1, -1)).cumsum(1)
        hidden_TKU = _clip(x[:, None] + before_TKU)
        logits = torch.einsum("pdh,dlh->pdl", hidden_TKU, self.head) + self.head_bias
        logits = logits.masked_fill(self.get_buffer("absent"), -1e9)
        nats = F.cross_entropy(logits.flatten(0, 1), levels_TK.flatten(), reduction="sum")
        return {"nats": nats}

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Keep weights so small that sums of their integers are exact (see
        `viq.codec.level_network`)."""
        for weight in (self.head, *(layer.get_parameter("weight") for layer in self.context)):
            limit = 0.9 * EXACT / (CAP * WEIGHT_UNIT * weight.shape[-1])
            weight.clamp_(-limit, limit)

    def tensors(self) -> dict[str, np.ndarray]:
        """Rounded to the integers of `LevelNetwork`."""
        self.clip_weights()
        result = {
            "embed": _integers(self.embed, VALUE_UNIT, np.int16),
            "head.weight": _integers(self.head, WEIGHT_UNIT, np.int16),
            "head.bias": _integers(self.head_bias, WEIGHT_UNIT * VALUE_UNIT, np.int32),
        }
        for i, layer in enumerate(self.context):
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            result[f"context.{i}.weight"] = _integers(weight, WEIGHT_UNIT, np.int16)
            result[f"context.{i}.bias"] = _integers(bias, WEIGHT_UNIT * VALUE_UNIT, np.int32)
        return result


def train_entropy(
    tokenizer: VisualTokenizer,
    data: Sequence[str],
    *,
    config: EntropyConfig | None = None,
    root: Path | None = None,
    access: Access | None = None,
    overwrite: bool = False,
    counts_only: bool = False,
    limit: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Fit the entropy model of a tokenizer and write it into the folder of the tokenizer.

    Args:
        data: stores or Parquet files of its codes; or pictures, as `open_source` takes them.
        root, access: of pictures, as of `open_source`.
        overwrite: replace the one that the folder has: what it compressed can still be read, as
            each store keeps the model it was made with.
        counts_only: keep the tables of four codes a patch that the folder has, and fit what counts
            of codes say beside them; pictures are then encoded with counts alone, one in
            `TablesFitConfig.counted`.
        limit: pictures at most, the first; None: all.
        report: called with records of progress.

    Returns:
        What came out, JSON-able: `bits_per_code` is that of the images that were held out.

    Raises:
        ViqError: the tokenizer has no folder, or one with an entropy model, or too little data.
    """
    if tokenizer.entropy_file is None:
        raise ViqError(f"{tokenizer.config.name}: has no folder; save it and load it from there")
    before = _tables_of(tokenizer) if counts_only else None
    if tokenizer.entropy_file.exists() and not overwrite:
        own = tokenizer.entropy_file.is_relative_to(BUNDLED)
        hint = "comes with the package: copy its folder, and give that as --model" if own else \
            "exists; give --overwrite to replace it"  # fmt: skip
        raise ViqError(f"{tokenizer.entropy_file}: {hint}")
    options = {"root": root, "access": access}
    codes, skipped = _codes_of(tokenizer, data, options, report, counts_only, limit)
    kept = [item for i, item in enumerate(codes) if i % _HELD_OUT]
    held_out = codes[::_HELD_OUT]
    if isinstance(tokenizer.quantizer, TransformQuantizer):
        model: EntropyModel = _fit_tables(kept, tokenizer, tokenizer.quantizer, before)
    else:
        model = fit_entropy(kept, tokenizer.levels, tokenizer.fingerprint, config, report)
    path = model.save(tokenizer.entropy_file.parent)
    return {
        "entropy_model": str(path),
        "stamp": model.digest,
        "bytes": path.stat().st_size,
        "images": len(codes),
        "skipped": skipped,
        "bits_per_code": round(model.bits(held_out) / _stored(model, held_out), 3),
    }


def _tables_of(tokenizer: VisualTokenizer) -> ClassTables:
    """The tables that a tokenizer has. Raises `ViqError`: it has none, or no codes with counts."""
    parts_of(tokenizer)
    if not isinstance(tables := tokenizer.entropy, ClassTables):
        raise ViqError(f"{tokenizer.entropy_file}: has no tables; fit it without --counts-only")
    return tables


def _fit_tables(
    codes: Sequence[Codes],
    tokenizer: VisualTokenizer,
    quantizer: TransformQuantizer,
    tables: ClassTables | None = None,
) -> ClassTables:
    """Tables of a transform code; with what counts say if the tokenizer gives codes with counts.

    Args:
        tables: of four codes a patch; None: they are fitted, too.
    """
    if tables is None:
        plain = [item for item in codes if item.counts is None] or codes
        tables = fit_class_tables(plain, quantizer, tokenizer.fingerprint)
    if tokenizer.refinement is None:
        return tables
    return fit_counted_tables(tables, codes, quantizer.code, tokenizer.refinement)


def fit_entropy(
    codes: Sequence[Codes],
    levels: Sequence[int],
    fingerprint: str,
    config: EntropyConfig | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> LevelNetwork:
    """Fit an entropy model to the codes of a tokenizer with FSQ; deterministic on one machine.

    Raises:
        ViqError: too few codes to learn from.
    """
    config = config or EntropyConfig()
    sizes = np.array(tuple(levels) * (codes[0].ids.shape[-1] if codes else 0))
    layout = Layout.of([item.grid for item in codes]) if codes else None
    if layout is None or len(layout.step_T) < config.patches:
        raise ViqError(f"an entropy model needs at least {config.patches} patches to learn from")
    levels_TK = layout.levels([item.ids for item in codes], levels)
    values = layout.values(levels_TK, sizes).astype(np.int16)
    levels_TK = levels_TK.astype(np.int8)
    torch.manual_seed(config.seed)
    network = EntropyNetwork(sizes, layout.neighbours_T3.shape[1] * values.shape[1], config)
    batches = _batches(values, levels_TK, layout.neighbours_T3, config)

    def log(record: dict[str, Any]) -> None:
        bits = record["loss"] * len(levels) / math.log(2)
        steps = {name: record[name] for name in ("step", "steps")}
        report({**steps, "bits_per_code": round(bits, 3)})

    train_in_memory(
        network, batches, config.loop(), name="entropy model", seed=config.seed, log=log
    )
    return LevelNetwork(network.tensors(), levels, fingerprint)


def _batches(
    values: np.ndarray, levels_TK: np.ndarray, neighbours_T3: np.ndarray, config: EntropyConfig
) -> Iterator[EntropyBatch]:
    """Patches at random, endlessly."""
    rng = np.random.default_rng(config.seed)
    while True:
        chosen = rng.integers(0, len(levels_TK), config.patches)
        read = values[neighbours_T3[chosen]].reshape(len(chosen), -1)
        yield EntropyBatch(
            values_TI=torch.from_numpy(read).float() / VALUE_UNIT,
            levels_TK=torch.from_numpy(levels_TK[chosen]).long(),
        )


def _codes_of(
    tokenizer: VisualTokenizer,
    data: Sequence[str],
    options: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
    counts_only: bool,
    limit: int | None,
) -> tuple[list[Codes], int]:
    """Codes of stores and pictures, and how many pictures could not be read."""
    codes, pictures = [], []
    for place in data:
        if _is_codes(Path(place)):
            codes += [item for _, item in Store(place)]
        else:
            pictures.append(open_source(place, **options))
    for item in codes[:1]:
        tokenizer.require(item.fingerprint)
    source, skipped = concatenate(pictures) if pictures else (), 0
    for i in range(min(len(source), limit or len(source))):
        try:
            row = source[i]
            images = [row.open(place) for place in range(len(row.images))]
            codes += [] if counts_only else tokenizer.encode(images)
        except ViqError:
            skipped += 1
        else:
            codes += _with_counts(tokenizer, images, i, TablesFitConfig())
        if (i + 1) % _REPORT_PICTURES == 0:
            report({"encoded": i + 1, "pictures": len(source)})
    return codes, skipped


def fit_tables_to(
    tokenizer: VisualTokenizer, pictures: Iterable[ImageInput], config: TablesFitConfig
) -> EntropyModel:
    """Tables for a tokenizer with a transform code, from pictures.

    Raises:
        ViqError: a tokenizer of another kind, or no picture.
    """
    if not isinstance(tokenizer.quantizer, TransformQuantizer):
        raise ViqError(f"{tokenizer.config.name}: tables need a transform code")
    codes = []
    for number, picture in enumerate(pictures):
        codes += tokenizer.encode(picture)
        codes += _with_counts(tokenizer, [picture], number, config)
    return _fit_tables(codes, tokenizer, tokenizer.quantizer)


def _with_counts(
    tokenizer: VisualTokenizer, images: Sequence[ImageInput], number: int, config: TablesFitConfig
) -> list[Codes]:
    """Of some pictures, codes with counts as well."""
    turn, other = divmod(number, config.counted)
    if other or tokenizer.refinement is None:
        return []
    with suppress(ViqError):  # too small for the rate
        return tokenizer.encode(images, bpp=config.rates[turn % len(config.rates)])
    return []


def _stored(model: EntropyModel, codes: Sequence[Codes]) -> int:
    """How many ids the model stores of these."""
    return sum(int(item.kept.sum()) if model.counted else item.ids.size for item in codes)


def _is_codes(path: Path) -> bool:
    if (path / JOB).exists():
        return True
    try:
        return path.suffix == PARQUET and bool(CodesReader(path).info)
    except CodesError:
        return False


def _clip(x: Tensor) -> Tensor:
    return x.clamp(0, CAP / VALUE_UNIT)


def _integers(tensor: Tensor, unit: int, dtype: type[np.signedinteger]) -> np.ndarray:
    limits = np.iinfo(dtype)
    return (tensor.detach() * unit).round().clamp(limits.min, limits.max).numpy().astype(dtype)
