"""How fast the tokenizer is, how it scales, and what its unusual choices gain.

    result = run("viq-tiny")
    print(as_text(result))

Pictures are drawn from fixed seeds, pixels lie in memory before the clock starts, and every time
stands beside a baseline of the same run. `viq bench encode` prints this.
"""

from __future__ import annotations

import importlib.util
import math
import random
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viq.bench import components
from viq.bench.encode_tables import as_text
from viq.bench.setting import Setting, chosen_sections
from viq.core.codes import Codes
from viq.core.measure import compare, machine, peak_memory, run_command
from viq.core.types import Size, grid_of
from viq.data.synthetic.draw import KINDS, draw
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.presets import MODELS
from viq.models.tokenizer.tokenizer import VisualTokenizer

__all__ = [
    "FULL",
    "QUICK",
    "SECTIONS",
    "EncodeWorkload",
    "as_text",
    "mixed_images",
    "picture",
    "run",
]

_BASE = EncoderConfig(width=768, depth=12, heads=12, mlp_width=3072, position_grid=16)


@dataclass(frozen=True, kw_only=True)
class EncodeWorkload:
    """How much is measured; sizes are (height, width) in px."""

    images: int = 32  # of mixed sizes
    sides: tuple[int, int] = (64, 768)  # px, least and greatest side of those
    tiled_mp: tuple[float, ...] = (1, 0.25, 4, 16)  # megapixels; the first is the baseline
    whole_mp: tuple[float, ...] = (0.25, 1, 4)  # the same without tiles: quadratic in area
    photo: Size | None = (3000, 4000)  # one large image, encoded and decoded
    memory: tuple[Size, ...] = ((866, 1155), (3000, 4000))
    attention_images: int = 8  # a block mask over all of them takes memory quadratic in patches
    restore_patches: tuple[int, ...] = (64, 1024)  # a small image: what folding anew costs there
    restore_models: tuple[str, ...] = ("so400m", "g")  # beside the model at hand
    base_images: int = 16  # through towers of width 768 and depth 12; 0: leave them out


FULL = EncodeWorkload()
QUICK = EncodeWorkload(
    images=12,
    tiled_mp=(1, 0.25, 4),
    photo=None,
    memory=((866, 1155),),
    restore_patches=(64, 256),
    restore_models=(),
    base_images=0,
)


_Setting = Setting[EncodeWorkload]


def run(
    model: str | VisualTokenizer,
    *,
    repeats: int = 5,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
    work: EncodeWorkload | None = None,
    sections: Collection[str] | None = None,
) -> dict[str, Any]:
    """Measure a tokenizer; the result is for `json.dumps` and `as_text`.

    Args:
        model: as `viq.load` takes it, or a tokenizer in eval mode.
        repeats: timed runs of everything that is compared, after one to warm up.
        quick: small work, about a minute for viq-tiny on two cores.
        progress: called with the name of each section before it starts.
        work: instead of the usual full or quick work.
        sections: names of `SECTIONS` to run; None runs all.
    """
    chosen = chosen_sections(SECTIONS, sections, progress)
    tokenizer = load(model) if isinstance(model, str) else model
    with tempfile.TemporaryDirectory() as folder:
        if not isinstance(model, str):
            tokenizer.save_pretrained(folder)
        setting = _Setting(
            tokenizer=tokenizer,
            model=model if isinstance(model, str) else folder,
            work=work or (QUICK if quick else FULL),
            repeats=repeats,
        )
        result = {
            "benchmark": "encode",
            "model": tokenizer.config.name,
            "parameters": sum(p.numel() for p in tokenizer.parameters()),
            "device": tokenizer.device.type,
            "dtype": tokenizer.dtype_name,
            "repeats": repeats,
            "quick": quick,
            "machine": machine(),
        }
        for name, section in chosen:
            absent = name in _OF_TRANSFORMERS and tokenizer.config.quantizer.transform is not None
            result[name] = {"skipped": _NO_TRANSFORMER} if absent else section(setting)
    return result


def mixed_images(count: int, sides: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Synthetic pictures (H, W, 3), uint8: sides within `sides` px, aspect up to 2:1, both ways."""
    rng = random.Random(seed)
    images = []
    for i in range(count):
        long = rng.randint(*sides)
        short = max(sides[0], round(long / rng.uniform(1, 2)))
        size = (long, short) if rng.random() < 0.5 else (short, long)
        images.append(np.asarray(draw(KINDS[i % len(KINDS)], size, seed + i).image))
    return images


def picture(size: Size) -> np.ndarray:
    """A picture (H, W, 3), uint8, of any size: one drawing, repeated."""
    tile = np.asarray(draw("shapes", (768, 1024), 0).image)
    repeats = [-(-wanted // side) for wanted, side in zip(size, tile.shape, strict=False)]
    return np.tile(tile, (*repeats, 1))[: size[0], : size[1]].copy()


# Sections


def _throughput(s: _Setting) -> dict[str, Any]:
    images = mixed_images(s.work.images, s.work.sides)
    times = compare(
        {
            "one_by_one": lambda: s.tokenizer.encode(images),
            "packed": lambda: s.tokenizer.encode(images, packed=True),
        },
        s.repeats,
    )
    codes = s.tokenizer.encode(images)
    return {
        "images": len(images),
        "times": times,
        "rates": {name: _rates(codes, spent["median_s"]) for name, spent in times.items()},
    }


def _decode(s: _Setting) -> dict[str, Any]:
    if s.tokenizer.decoder is None:
        return {"skipped": f"{s.tokenizer.config.name} has no pixel decoder"}
    images = mixed_images(s.work.images, s.work.sides)
    codes = s.tokenizer.encode(images)
    times = compare(
        {"encode": lambda: s.tokenizer.encode(images), "decode": lambda: s.tokenizer.decode(codes)},
        s.repeats,
    )
    return {
        "images": len(images),
        "times": times,
        "rates": {name: _rates(codes, spent["median_s"]) for name, spent in times.items()},
    }


def _size(s: _Setting) -> dict[str, Any]:
    """Time a megapixel against area, with the model's tiles and without, and peak memory."""
    cases, tokenizer = [], s.tokenizer
    for tile, areas in ((tokenizer.config.tile, s.work.tiled_mp), (0, s.work.whole_mp)):
        cases += [(tile, four_to_three(megapixels)) for megapixels in areas]
    cases = list(dict.fromkeys(cases))  # a model without tiles would be measured twice
    times = compare(
        {f"{tile} {size}": _encoding(tokenizer, picture(size), tile) for tile, size in cases},
        s.repeats,
    )
    rows = []
    for tile, size in cases:
        spent, megapixels = times[f"{tile} {size}"], size[0] * size[1] / 1e6
        rows.append(
            {
                "size": list(size),
                "megapixels": megapixels,
                "tile": tile,
                "times": spent,
                "s_per_megapixel": spent["median_s"] / megapixels,
            }
        )
    for row in rows:
        row["ratio_to_first"] = row["s_per_megapixel"] / rows[0]["s_per_megapixel"]
    result: dict[str, Any] = {"encode": rows, "memory_mib": _memory(s)}
    if s.work.photo:
        image = picture(s.work.photo)
        codes = tokenizer.encode(image)
        variants: dict[str, Callable[[], Any]] = {"encode": lambda: tokenizer.encode(image)}
        if tokenizer.decoder is not None:
            variants["decode"] = lambda: tokenizer.decode(codes)
        times = compare(variants, s.repeats)
        result["photo"] = {"size": list(s.work.photo), "times": times}
    return result


def _memory(s: _Setting) -> dict[str, float | None]:
    """Peak of a fresh process, MiB: the model loaded, then beside one image in and out."""
    if s.tokenizer.device.type != "cpu":
        return {}  # host memory says little where the model is elsewhere
    result = {"loaded": peak_memory(_round_trip, s.model, None)}
    for size in s.work.memory:
        result[f"{size[1]}x{size[0]}"] = peak_memory(_round_trip, s.model, size)
    return result


def _round_trip(model: str, size: Size | None) -> None:
    """What the processes of `_memory` do."""
    tokenizer = load(model)
    if size:
        codes = tokenizer.encode(picture(size))
        if tokenizer.decoder is not None:
            tokenizer.decode(codes)


def _attention(s: _Setting) -> dict[str, Any]:
    config = s.tokenizer.config.encoder
    images = mixed_images(s.work.attention_images, s.work.sides)
    lengths = [rows * cols for rows, cols in _grids(images, config.patch_size)]
    head_dim = config.width // config.heads
    return components.attention(config.heads, head_dim, lengths, s.tokenizer.device, s.repeats)


def _folding(s: _Setting) -> dict[str, Any]:
    mine = s.tokenizer.config
    configs = [(mine.name, mine)]
    configs += [(config.name, config) for config in (MODELS[n]() for n in s.work.restore_models)]
    return {
        name: components.folding(
            name,
            config.encoder.width,
            config.quantizer,
            s.work.restore_patches,
            s.tokenizer.device,
            s.repeats,
        )
        for name, config in configs
    }


def _trunk_vs_naflex(s: _Setting) -> dict[str, Any]:
    if importlib.util.find_spec("transformers") is None:
        return {"skipped": "transformers is not installed: pip install transformers"}
    images = mixed_images(s.work.images, s.work.sides)
    grids = _grids(images, s.tokenizer.config.encoder.patch_size)
    device, repeats = s.tokenizer.device, s.repeats
    result = {
        s.tokenizer.config.name: components.trunk_vs_naflex(
            s.tokenizer.config.encoder, grids, device, repeats
        )
    }
    if s.work.base_images:
        # The padded tower of this size takes a minute a run on two cores.
        grids, repeats = grids[: s.work.base_images], min(repeats, 3)
        result["base"] = components.trunk_vs_naflex(_BASE, grids, device, repeats)
    return result


def _cold(s: _Setting) -> dict[str, Any]:
    """Wall time of new processes; their files are in the disk cache, as after a first use."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        Image.fromarray(picture((512, 768))).save(photo, quality=90)
        cli = [sys.executable, "-m", "viq.cli"]
        out = str(Path(folder, "photo.viq"))
        encode = [*cli, "encode", str(photo), "--model", s.model, "--out", out, "--overwrite"]
        commands = {
            "python": [sys.executable, "-c", "pass"],
            "import viq": [sys.executable, "-c", "import viq"],
            "import torch": [sys.executable, "-c", "import torch"],
            "viq --help": [*cli, "--help"],
            "viq encode 768x512.jpg": encode,
        }
        failed = {}
        for name, command in list(commands.items()):
            try:
                run_command(command)
            except RuntimeError as error:
                failed[name] = str(error)
                del commands[name]
        variants = {name: _running(command) for name, command in commands.items()}
        return {"times": compare(variants, s.repeats), "failed": failed}


SECTIONS: dict[str, Callable[[_Setting], dict[str, Any]]] = {
    "throughput": _throughput,
    "decode": _decode,
    "size": _size,
    "attention": _attention,
    "folding": _folding,
    "trunk_vs_naflex": _trunk_vs_naflex,
    "cold": _cold,
}
_OF_TRANSFORMERS = ("attention", "folding", "trunk_vs_naflex")
_NO_TRANSFORMER = "a transform code has no transformer"


def _rates(codes: Sequence[Codes], seconds: float) -> dict[str, float]:
    patches = sum(item.ids.shape[0] * item.ids.shape[1] for item in codes)
    return {
        "images_per_s": len(codes) / seconds,
        "megapixels_per_s": sum(math.prod(item.size) for item in codes) / 1e6 / seconds,
        "patches_per_s": patches / seconds,
        "codes_per_s": sum(item.ids.size for item in codes) / seconds,
    }


def four_to_three(megapixels: float) -> Size:
    """Landscape, (height, width) px."""
    height = math.sqrt(megapixels * 1e6 * 3 / 4)
    return round(height), round(height * 4 / 3)


def _grids(images: Iterable[np.ndarray], patch_size: int) -> list[tuple[int, int]]:
    return [grid_of((image.shape[0], image.shape[1]), patch_size) for image in images]


def _encoding(tokenizer: VisualTokenizer, image: np.ndarray, tile: int) -> Callable[[], Any]:
    return lambda: tokenizer.encode(image, tile=tile)


def _running(command: Sequence[str]) -> Callable[[], None]:
    return lambda: run_command(command)
