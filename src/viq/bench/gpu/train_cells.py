"""The decoder of recipe `small` within minutes on one GPU, on codes that the bundled model made.

A decoder is what such a time serves best: the code stays as it is, with its fingerprint, so every
store there is gains, and the loss is on pixels, which needs no teacher and no text. Photos come
from one file (`pack_photos`). Their codes are made once, at several sizes, some mirrored, and stay
on the device with the pixels, so that a step is nothing but the decoder.

T = patches of all images, D = values of a patch, S = 4 slots.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from viq.bench.gpu.cells import Cells, append
from viq.bench.gpu.kept import PART_BYTES, read_parts, save_parts
from viq.core.files import write_atomically
from viq.core.types import PATCH_SIZE, ViqError
from viq.data.batching.mixture import Position
from viq.data.batching.tokenizer_batches import MicroBatch
from viq.data.corpora.corpora import open_corpora, split_of
from viq.data.corpora.photos import Photos
from viq.data.synthetic.draw import KINDS, draw
from viq.image.patches import PatchBatch, normalize, patchify
from viq.metrics.images import psnr
from viq.models.tokenizer.config import TokenizerConfig
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.samples import sample_pictures
from viq.train.distributed import make_accelerator, process_settings
from viq.train.loop import Hooks, LoopConfig, train
from viq.train.tokenizer.handover import frozen_but
from viq.train.tokenizer.objectives import DecoderObjective
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.weights.checkpoint import load_strictly

BASE = "viq-transform"
_SCALES = (1.0, 0.75, 0.5)
_TAKEN = 2**28  # values of patches that are kept on the device, about a gigabyte of bytes
_SHARE = 0.8  # of what is left goes into steps; the rest is for evaluation and saving
_PREPARE = 0.25  # of the time is for codes, at most
_SEEN = 12  # held-out photos


@dataclass(frozen=True, kw_only=True)
class SmallWork:
    """How it is trained.

    Attributes:
        decoder: shape; None: that of the recipe.
        patches: of a step.
        steps: None: as many as the time allows.
        drawn: synthetic pictures beside the photos.
        scales: at which each photo is seen.
    """

    decoder: DecoderConfig | None = None
    patches: int = 8192
    steps: int | None = None
    drawn: int = 120
    scales: tuple[float, ...] = _SCALES
    side: int = 512  # px, longest of a picture
    photos: int | None = None  # of the file; None: all
    judged: int = _SEEN


def measure(
    cells: Cells,
    recipe: TokenizerRecipe,
    photos: Path | None,
    work: SmallWork,
    *,
    least: float = 60.0,
) -> None:
    """The one cell of this part: train, judge, save.

    Args:
        recipe: `small`; its last stage is trained.
        photos: what `pack_photos` wrote, or any data of photos; None: drawn pictures alone.
        least: seconds below which it is not worth while.
    """
    left = cells.left()
    if work.steps is None and left < least:
        cells.run("train", "small", dict, expected=least)  # says that it was left out
        return
    cells.run(
        "train",
        "small",
        lambda: _trained(cells, recipe, photos, work),
        expected=max(1.0, left - 1.0),
    )


@process_settings()
def _trained(
    cells: Cells, recipe: TokenizerRecipe, photos: Path | None, work: SmallWork
) -> dict[str, Any]:
    begun, device = time.monotonic(), cells.device
    torch.manual_seed(0)
    (stage,) = (stage for stage in recipe.stages if stage.kind == "decoder")
    tokenizer = small(recipe, work.decoder)
    objective = DecoderObjective(tokenizer)
    frozen_but(objective, stage)
    tokenizer.to(device)
    pictures, held = _pictures(photos, work)
    data = CodedPictures.of(tokenizer, pictures, work, device, _PREPARE * cells.left())
    prepared = time.monotonic() - begun
    judged = [(name, picture) for name, picture in held if min(picture.size) >= PATCH_SIZE]
    before = _judged(load(BASE, device=device), judged)
    batches = _Endless(data, work.patches)
    accelerator = make_accelerator("bfloat16" if device.type == "cuda" else "float32")
    steps = work.steps
    if steps is None:
        each = _seconds_a_step(objective, batches, accelerator)
        steps = max(20, int(_SHARE * cells.left() / each))
    loop = _loop(stage, steps)
    seconds = time.monotonic()
    train(
        objective, lambda resumed: batches, loop, None, name="small", seed=0,
        accelerator=accelerator,
        hooks=Hooks(log=lambda record: append(cells.folder, {"part": "train", "cell":
                                                             f"step {record['step']}", **record})),
    )  # fmt: skip
    seconds = time.monotonic() - seconds
    tokenizer.eval()
    after = _judged(tokenizer, judged)
    files = save_decoder(tokenizer, cells.folder)
    return {
        "pictures": len(data.grids),
        "photos": len(pictures),
        "patches": len(data.ids_TS),
        "parameters": sum(p.numel() for p in _decoder(tokenizer).parameters()),
        "steps": steps,
        "patches_per_s": steps * work.patches / seconds,
        "prepared_s": prepared,
        "trained_s": seconds,
        "psnr_db": {"base": before, "small": after},
        "files": files,
    }


def small(recipe: TokenizerRecipe, decoder: DecoderConfig | None = None) -> VisualTokenizer:
    """The bundled code with the decoder of recipe `small`, which begins as the code's inverse."""
    base = load(BASE)
    model = recipe.model
    config: TokenizerConfig = replace(
        base.config, name=model.name, decoder=decoder or model.decoder, refinement=None
    )
    tokenizer = VisualTokenizer(config)
    own = tokenizer.state_dict()
    kept = {k: v for k, v in base.state_dict().items()
            if k in own and not k.startswith("decoder.")}  # fmt: skip
    load_strictly(tokenizer, own | kept, BASE)
    return tokenizer.eval()


def _loop(stage: StageConfig, steps: int) -> LoopConfig:
    average = min(stage.loop.ema_decay, 1 - 10 / (steps + 10))  # over a tenth of a short run
    return replace(
        stage.loop, steps=steps, ema_decay=average, log_every=max(1, steps // 60),
        eval_every=steps, save_every=steps,
    )  # fmt: skip


def _seconds_a_step(objective: DecoderObjective, batches: _Endless, accelerator: Any) -> float:
    """Of a forward and a backward pass, and a tenth for the optimizer; the first are left out."""
    objective.train()
    begun = time.monotonic()
    for number in range(13):
        if number == 3:
            _settle(accelerator.device)
            begun = time.monotonic()
        with accelerator.autocast():
            sums = objective(batches.batch())
        (sums["rmse"] / 1e3).backward()
    _settle(accelerator.device)
    objective.zero_grad(set_to_none=True)
    return 1.1 * (time.monotonic() - begun) / 10 + 2e-3


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Pictures and their codes


def pack_photos(paths: Sequence[str], out: Path, *, mib: float, side: int = 512) -> int:
    """One Parquet file of photos for a machine to which little can be carried; gives their number.

    Their keys are their names, so the same ones are held out wherever they lie.

    Args:
        paths: data of photos; those that come first in an order drawn at random are taken.
        mib: size of the file, at most.
        side: px; longer ones are made smaller.

    Raises:
        ViqError: no photos, or the file is there.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.exists():
        raise ViqError(f"{out}: is there: give another name")
    photos = Photos(corpus for corpus in open_corpora(paths, None) if corpus.pictures_only)
    names = photos.names()
    order = list(range(len(photos)))
    random.Random(0).shuffle(order)
    rows: list[dict[str, Any]] = []
    room = mib * 2**20 - 2**14
    for index in order:
        picture = photos[index]
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=90, method=6)
        room -= buffer.tell() + 64
        if room < 0:
            break
        rows.append({"key": names[index], "image": buffer.getvalue()})
    if not rows:
        raise ViqError(f"{out}: no photo fits into {mib:g} MiB: give more, or photos")
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none")
    write_atomically(out, buffer.getvalue())
    return len(rows)


def _pictures(
    photos: Path | None, work: SmallWork
) -> tuple[list[Image.Image], list[tuple[str, Image.Image]]]:
    """Pictures to learn from, and others to judge by."""
    found: list[Image.Image] = []
    held = sample_pictures()
    if photos is not None:
        taken = Photos(open_corpora([photos], None))
        named = [(name, taken[i]) for i, name in enumerate(taken.names())]
        found = [image for name, image in named if split_of(name) == "train"][: work.photos]
        held += [(name, image) for name, image in named if split_of(name) == "held-out"]
    for number in range(work.drawn):
        size = (work.side * 3 // 4, work.side)[:: 1 if number % 2 else -1]
        found.append(draw(KINDS[number % len(KINDS)], (size[0], size[1]), number).image)
    for picture in [*found, *(picture for _, picture in held)]:
        picture.thumbnail((work.side, work.side), Image.Resampling.LANCZOS)
    return found, held[: work.judged]


@dataclass(frozen=True, kw_only=True)
class CodedPictures:
    """Pictures whose sides are whole patches, with their codes, on a device.

    Attributes:
        pixels_TD: uint8.
        ids_TS: codes, int32.
        grids, starts: of each picture, and where its patches begin.
    """

    pixels_TD: Tensor
    ids_TS: Tensor
    grids: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokenizer: VisualTokenizer,
        pictures: Sequence[Image.Image],
        work: SmallWork,
        device: torch.device,
        seconds: float = math.inf,
    ) -> CodedPictures:
        """Each picture at every scale, every other one mirrored, and its codes as `encode` gives
        them; those that there is time for."""
        pixels, ids, grids = [], [], []
        begun = time.monotonic()
        with torch.inference_mode():
            for batch in _packed(_varied(pictures, work.scales), work.patches):
                if sum(part.numel() for part in pixels) + batch.patches_TD.numel() > _TAKEN:
                    break
                patches_TD = batch.patches_TD.to(device)
                batch = PatchBatch(patches_TD=patches_TD, grids_hw=batch.grids_hw)
                ids.append(tokenizer.ids(batch).int())
                pixels.append(_bytes(patches_TD))
                grids += batch.grids_hw
                if time.monotonic() - begun > seconds:
                    break
        starts = np.cumsum([0, *(rows * cols for rows, cols in grids)])[:-1].tolist()
        return cls(
            pixels_TD=torch.cat(pixels).clone(), ids_TS=torch.cat(ids).clone(),
            grids=tuple(grids), starts=tuple(starts),
        )  # fmt: skip


def _packed(pictures: Iterable[Image.Image], patches: int) -> Iterator[PatchBatch]:
    """Pictures in batches of about so many patches: a GPU takes as long for one alone."""
    parts, grids = list[Tensor](), list[tuple[int, int]]()
    for picture in pictures:
        parts.append(patchify(normalize(np.asarray(picture))))
        grids.append((picture.height // PATCH_SIZE, picture.width // PATCH_SIZE))
        if sum(map(len, parts)) >= patches:
            yield PatchBatch(patches_TD=torch.cat(parts), grids_hw=tuple(grids))
            parts, grids = [], []
    if parts:
        yield PatchBatch(patches_TD=torch.cat(parts), grids_hw=tuple(grids))


def _bytes(patches_TD: Tensor) -> Tensor:
    """Values in [-1, 1] as bytes of the same layout."""
    return ((patches_TD + 1) * 127.5).round().to(torch.uint8)


def _varied(pictures: Sequence[Image.Image], scales: Sequence[float]) -> Iterator[Image.Image]:
    """The whole size of all first, so that a limit leaves out repetitions rather than pictures."""
    for which, scale in enumerate(scales):
        for number, picture in enumerate(pictures):
            size = [max(1, round(s * scale) // PATCH_SIZE) * PATCH_SIZE for s in picture.size]
            box = (0, 0, min(picture.width, size[0] / scale), min(picture.height, size[1] / scale))
            resized = picture.convert("RGB").resize(
                (size[0], size[1]), Image.Resampling.BICUBIC, box=box
            )
            yield ImageOps.mirror(resized) if (number + which) % 2 else resized


class _Endless:
    """Micro-batches as the loop takes them: whole pictures, drawn at random, one lane."""

    lanes: Sequence[int] = (0,)

    def __init__(self, data: CodedPictures, patches: int) -> None:
        self.data, self.patches, self._rng = data, patches, random.Random(0)

    def steps(self, first: int, last: int) -> Iterator[tuple[list[Any], dict[int, Position]]]:
        for _ in range(first, last):
            yield [self.batch()], {}

    def batch(self) -> MicroBatch:
        data, chosen, count = self.data, list[int](), 0
        while count < self.patches:
            picture = self._rng.randrange(len(data.grids))
            rows, cols = data.grids[picture]
            chosen.append(picture)
            count += rows * cols
        grids = tuple(data.grids[i] for i in chosen)
        slices = [slice(data.starts[i], data.starts[i] + h * w)
                  for i, (h, w) in zip(chosen, grids, strict=True)]  # fmt: skip
        pixels_TD = torch.cat([data.pixels_TD[part] for part in slices])
        patches_TD = pixels_TD.float() / 127.5 - 1
        return MicroBatch(
            batch=PatchBatch(patches_TD=patches_TD, grids_hw=grids),
            mask_TD=torch.ones_like(patches_TD),
            sizes=tuple((h * PATCH_SIZE, w * PATCH_SIZE) for h, w in grids),
            ids_TS=torch.cat([data.ids_TS[part] for part in slices]).long(),
        )


# What came of it


def _judged(tokenizer: VisualTokenizer, pictures: Sequence[tuple[str, Image.Image]]) -> float:
    """Mean PSNR, dB, of pictures through codes."""
    found = []
    for _, picture in pictures:
        painted = tokenizer.decode(tokenizer.encode(picture))[0]
        found.append(psnr(np.asarray(picture.convert("RGB")), np.asarray(painted)))
    return float(np.mean(found))


def _decoder(tokenizer: VisualTokenizer) -> torch.nn.Module:
    assert tokenizer.decoder is not None
    return tokenizer.decoder


def save_decoder(tokenizer: VisualTokenizer, folder: Path, limit: int = PART_BYTES) -> list[str]:
    """The decoder in bfloat16, in files of at most `limit` bytes (or one tensor): their names."""
    return save_parts(_decoder(tokenizer).state_dict(), folder, "decoder", torch.bfloat16, limit)


def assemble(
    folder: Path, recipe: TokenizerRecipe, decoder: DecoderConfig | None = None
) -> VisualTokenizer:
    """The tokenizer whose decoder `save_decoder` wrote to a folder.

    Raises:
        ViqError: it holds none, or not all of it.
    """
    weights = read_parts(folder, "decoder")
    tokenizer = small(recipe, decoder)
    load_strictly(_decoder(tokenizer), weights, str(folder))
    return tokenizer
