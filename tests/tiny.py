"""Small things that tests share: a tokenizer with random weights, a text tokenizer, a language
model, and data.
"""

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.data.text.text_tokenizer import train_text_tokenizer
from viq.models.language.vision_language import LanguageConfig, build_language
from viq.models.tokenizer.tokenizer import TokenizerConfig, VisualTokenizer
from viq.recipes.tokenizer import train_debug
from viq.train.tokenizer.handover import begin

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, mlp_width=48)


def config(**changes: object) -> TokenizerConfig:
    return replace(train_debug().model, **changes)  # type: ignore[arg-type]


def tokenizer(bottleneck: str = "fsq", seed: int = 0, **changes: object) -> VisualTokenizer:
    """A few thousand parameters, random weights."""
    return begin(config(**changes), bottleneck, None, seed).requires_grad_(False).eval()


@functools.cache
def letters() -> Any:
    """A text tokenizer without merges: every byte is a token, so ids can be written by hand."""
    return train_text_tokenizer([], 259)


def language(vocabulary: int | None = None, **changes: object) -> Any:
    """A Qwen2 of random weights, by default for `letters`."""
    torch.manual_seed(0)
    shape = replace(LANGUAGE, **changes)  # type: ignore[arg-type]
    return build_language(shape, vocabulary or len(letters()))


def picture(seed: int, height: int = 20, width: int = 36) -> Image.Image:
    """Coloured noise, another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_chats(path: Path, samples: Sequence[tuple[int, Sequence[str]]]) -> Path:
    """The official JSONL, each sample with so many pictures beside it, and texts in alternation."""
    lines = []
    for number, (images, texts) in enumerate(samples):
        names = [f"{path.stem}-{number}-{i}.png" for i in range(images)]
        for i, name in enumerate(names):
            picture(100 * number + i).save(path.parent / name)
        speakers = ("human", "gpt") * len(texts)
        turns = [{"from": s, "value": t} for s, t in zip(speakers, texts, strict=False)]
        images_of = [{"img_path": name} for name in names]
        lines.append(json.dumps({"image": images_of, "conversations": turns}))
    path.write_text("".join(line + "\n" for line in lines))
    return path


COLOURS = {"red": (220, 30, 20), "green": (30, 200, 40), "blue": (20, 40, 220)}


def labelled_photos(folder: Path) -> Path:
    """JSON lines of 40 noisy pictures of three colours, two of a rare one, one that is broken."""
    rng = np.random.default_rng(0)
    lines = []
    for number, name in enumerate([*list(COLOURS) * 13, "red", "rare", "rare", "green"]):
        pixels = rng.normal(COLOURS.get(name, (0, 0, 0)), 30, (40, 33, 3)).clip(0, 255)
        path = folder / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        lines.append({"image": path.name, "label": name, "side": "even" if number % 2 else "odd"})
    (folder / "42.png").write_bytes(b"no picture")
    (folder / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "photos.jsonl"
