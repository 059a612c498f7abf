"""A small tokenizer with a transform code and a refinement, fitted in a second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from viq.data.synthetic.draw import draw
from viq.image.patches import normalize, patchify
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.presets import transform
from viq.models.tokenizer.refinement import RefinementConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_code import TransformConfig
from viq.train.tokenizer.refinement_fit import RefinementFitConfig, refined
from viq.train.tokenizer.transform_fit import TransformFitConfig, fit_transform, windows_of

CODE = TransformConfig(classes=8, basis=49, coefficients=12, levels=16)
REFINEMENT = RefinementConfig(directions=384, words=32)


def pictures(count: int, first: int = 0) -> list[Image.Image]:
    """Scenes of 128x96 px with the noise of photos: without it, they would have palettes."""
    found = []
    for number in range(first, first + count):
        noise = np.random.default_rng(number).integers(0, 2, (96, 128, 3))
        noisy = np.asarray(draw("scene", (96, 128), number).image) + noise
        found.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return found


def page(width: int = 160, height: int = 128) -> Image.Image:
    """Print on white, and a red field: patches of few colours."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    for line in range(height // 16):
        pen.text((3, 16 * line + 2), f"line {line}: 7.50 total {line * 31}", fill="black")
    pen.rectangle((100, 70, 150, 110), fill=(200, 30, 30))
    return image


def saved_pictures(folder: Path, count: int, first: int = 0) -> Path:
    """A folder with PNG files of `pictures`, in their order."""
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures(count, first)):
        picture.save(folder / f"{number:0{len(str(count - 1))}d}.png")
    return folder


@cache
def plain_tokenizer() -> VisualTokenizer:
    """Without a refinement."""
    whole = transform()
    config = replace(
        whole,
        encoder=replace(whole.encoder, width=60, mlp_width=60, semantic=None),
        quantizer=replace(whole.quantizer, transform=CODE),
        decoder=DecoderConfig(width=16, depth=1, kernel_size=3, refine_depth=1),
        tile=128,
        name="viq-refined",
    )
    windows = windows_of(pictures(12), 800, scales=(1, 1))
    torch.manual_seed(0)
    tokenizer = VisualTokenizer(config)
    quantizer = tokenizer.quantizer
    code = fit_transform(windows, CODE, TransformFitConfig(rounds=2))
    quantizer.code.load_state_dict(code.state_dict())
    ids = [quantizer.ids(patchify(normalize(window)), [(2, 2)]) for window in windows[:200]]
    quantizer.fit_features(torch.cat(ids))
    return tokenizer.requires_grad_(False).eval()


@cache
def refined_tokenizer() -> VisualTokenizer:
    """With one. Shared by tests: not to be changed."""
    crops = [np.asarray(draw("scene", (192, 256), 50 + i).image) for i in range(10)]
    fit = RefinementFitConfig(patches=150)
    return refined(plain_tokenizer(), crops, REFINEMENT, fit)
