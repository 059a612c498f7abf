"""Do an image's codes depend on anything but the image? Count the codes that flip.

Codes are compared with those of each image encoded alone, in fp32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.core.codes import Codes
from viq.image.open import open_image
from viq.image.patches import normalize, pack
from viq.models.tokenizer.quantizer import QuantizerHead
from viq.models.tokenizer.tokenizer import VisualTokenizer


def measure(
    tokenizer: VisualTokenizer,
    sources: Sequence[Path | Image.Image],
    *,
    random_sizes: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Flipped codes for every way of encoding the same images.

    Args:
        tokenizer: in fp32 on the CPU; left as it was.
        random_sizes: crops of random sizes, 1 to 400 px a side, added from the images.

    Returns:
        images, codes, `flips` ({way: codes that differ}), `rates` ({way: share of codes}) and
        `margin` (smallest distance of a value to a rounding boundary, in levels).
    """
    images = [open_image(source) for source in sources]
    images += random_crops(images, random_sizes, seed)
    alone = [tokenizer.encode(image)[0] for image in images]
    order = np.random.default_rng(seed).permutation(len(images))

    ways: dict[str, Callable[[], list[Codes]]] = {
        "again": lambda: tokenizer.encode(images),
        "in another order": lambda: _in_order(tokenizer, images, order),
        "packed=True, groups of 8": lambda: _packed(tokenizer, images, 8),
        "on one thread": lambda: _on_one_thread(tokenizer, images),
        "in bfloat16": lambda: _as(tokenizer, images, torch.device("cpu"), torch.bfloat16),
    }
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        ways["on the GPU, float32"] = lambda: _as(tokenizer, images, gpu, torch.float32)
        ways["on the GPU, bfloat16"] = lambda: _as(tokenizer, images, gpu, torch.bfloat16)
    flips = {way: count_flips(alone, run()) for way, run in ways.items()}
    codes = sum(item.ids.size for item in alone)
    return {
        "images": len(images),
        "codes": codes,
        "flips": flips,
        "rates": {way: count / codes for way, count in flips.items()},
        "margin": smallest_margin(tokenizer, images),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def random_crops(
    images: Sequence[Image.Image], count: int, seed: int, largest: int = 400
) -> list[Image.Image]:
    """Crops of random place and size, 1 to `largest` px a side."""
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        image = images[int(rng.integers(len(images)))]
        width = int(rng.integers(1, min(largest, image.width) + 1))
        height = int(rng.integers(1, min(largest, image.height) + 1))
        left = int(rng.integers(image.width - width + 1))
        top = int(rng.integers(image.height - height + 1))
        crops.append(image.crop((left, top, left + width, top + height)))
    return crops


def count_flips(reference: Sequence[Codes], others: Sequence[Codes]) -> int:
    """Codes that differ between two lists of the same images."""
    pairs = zip(reference, others, strict=True)
    return sum(int((a.ids != b.ids).sum()) for a, b in pairs)


@torch.inference_mode()
def smallest_margin(tokenizer: VisualTokenizer, images: Sequence[Image.Image]) -> float | None:
    """How close any value comes to a rounding boundary, in levels (0.5 is the middle); None for a
    transform code, whose levels are not evenly spaced."""
    if not isinstance(tokenizer.quantizer, QuantizerHead):
        return None
    bottleneck, smallest = tokenizer._fsq, 0.5
    for image in images:
        batch = pack([normalize(np.asarray(image))], tokenizer.config.encoder.patch_size)
        z_TSd = tokenizer.quantizer(tokenizer.encoder(batch), batch.grids_hw)
        smallest = min(smallest, float(bottleneck.fsq.margin(z_TSd).min()))
    return smallest


def _in_order(
    tokenizer: VisualTokenizer, images: Sequence[Image.Image], order: np.ndarray
) -> list[Codes]:
    shuffled = tokenizer.encode([images[i] for i in order])
    return [shuffled[place] for place in np.argsort(order)]


def _packed(tokenizer: VisualTokenizer, images: Sequence[Image.Image], group: int) -> list[Codes]:
    groups = (images[i : i + group] for i in range(0, len(images), group))
    return [codes for part in groups for codes in tokenizer.encode(part, packed=True)]


def _on_one_thread(tokenizer: VisualTokenizer, images: Sequence[Image.Image]) -> list[Codes]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tokenizer.encode(images)
    finally:
        torch.set_num_threads(threads)


def _as(
    tokenizer: VisualTokenizer,
    images: Sequence[Image.Image],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Codes]:
    copy = VisualTokenizer(tokenizer.config).eval()
    copy.load_state_dict(tokenizer.state_dict())
    return copy.to(device, dtype).encode(images)
