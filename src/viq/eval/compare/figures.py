"""The figures of one picture beside what a method made of it, and those of many pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.core.types import ViqError
from viq.eval.compare.legibility import Reading
from viq.eval.tokenizer.perceptual import EfficientNetDistance
from viq.metrics.frechet import frechet_distance
from viq.metrics.images import blockiness, fidelity, ms_ssim
from viq.metrics.text import character_errors
from viq.models.vision.lpips import load_lpips

# Of a picture; the mean over pictures has the same name.
AVERAGED = ("psnr", "ssim", "ms_ssim", "lpips", "efficientnet_distance", "blockiness")
_SIDE = 16  # px, of the blocks whose borders are looked at, whatever the method

Distance = Callable[[np.ndarray, np.ndarray], float]


class Networks:
    """The networks that compare pictures, those that are there.

    Attributes:
        shown: the figure of the table: "lpips", else "efficientnet_distance", else None.
        missing: for each that is not there, one line that says why.
    """

    def __init__(
        self, efficientnet: EfficientNetDistance | None = None, lpips: Distance | None = None
    ) -> None:
        self.efficientnet, self.lpips = efficientnet, lpips
        self.missing: list[str] = []
        present = {"lpips": lpips, "efficientnet_distance": efficientnet}
        self.shown = next((name for name, network in present.items() if network), None)

    @classmethod
    def found(cls) -> Networks:
        """Those of this machine."""
        missing, lpips, efficientnet = [], None, None
        try:
            lpips = _lpips()
        except ViqError as error:
            missing.append(str(error))
        try:
            efficientnet = EfficientNetDistance()
        except ViqError as error:
            missing.append(str(error))
        networks = cls(efficientnet, lpips)
        networks.missing = missing
        return networks


class Measure:
    """Figures of pictures beside their originals.

    Args:
        reader: also counts the wrong characters of what it reads.
    """

    def __init__(self, networks: Networks, reader: Reading | None = None) -> None:
        self._networks, self._reader = networks, reader

    def __call__(
        self, original: Image.Image, restored: Image.Image, wanted: str | None = None
    ) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
        """Figures, and the features of both pictures for `frechet`.

        Args:
            original, restored: RGB, of one size.
            wanted: the text on the original, where that is counted.

        Returns:
            psnr (dB, None of an exact copy), ssim, ms_ssim (None below 176 px), blockiness (1:
            none), lpips and efficientnet_distance where there is a network, and with a reader
            errors and characters; features (C,) of both, or None without a network.
        """
        a, b = np.asarray(original), np.asarray(restored)
        figures: dict[str, Any] = {
            **fidelity(a, b),
            "ms_ssim": ms_ssim(a, b),
            "blockiness": blockiness(b, a, _SIDE),
        }
        features = None
        if self._networks.lpips:
            figures["lpips"] = self._networks.lpips(a, b)
        if self._networks.efficientnet:
            distance, *both = self._networks.efficientnet.measure(a, b)
            figures["efficientnet_distance"] = distance
            features = both[0], both[1]
        if self._reader and wanted is not None:
            errors, characters = character_errors(self._reader.read(restored), wanted)
            figures |= {"errors": errors, "characters": characters}
        return figures, features


def totals(
    figures: Sequence[dict[str, Any]], features: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """Figures of many pictures.

    Args:
        figures: of each, with `pixels`, `bits` and `entropy_bits` beside those of `Measure`.
        features: of each, or none.

    Returns:
        bpp and bpp_entropy (all bits over all pixels, None without entropy coding), means of
        `AVERAGED`, efficientnet_frechet (None of fewer than two pictures), and text_accuracy: 1
        less the wrong characters over all, at least 0; None where no text was read.
    """
    pixels = sum(each["pixels"] for each in figures)
    entropy = [each["entropy_bits"] for each in figures]
    means: dict[str, Any] = {
        "bpp": sum(each["bits"] for each in figures) / pixels,
        "bpp_entropy": None if None in entropy else sum(entropy) / pixels,
    }
    for name in AVERAGED:
        values = [each[name] for each in figures if each.get(name) is not None]
        means[name] = math.fsum(values) / len(values) if values else None
    means["efficientnet_frechet"] = None
    if len(features) > 1:
        originals, restored = (np.stack(part) for part in zip(*features, strict=True))
        means["efficientnet_frechet"] = frechet_distance(originals, restored)
    characters = sum(each.get("characters", 0) for each in figures)
    errors = sum(each.get("errors", 0) for each in figures)
    means["text_accuracy"] = max(0.0, 1 - errors / characters) if characters else None
    return means


def _lpips() -> Distance:
    """LPIPS with AlexNet, where it can be had."""
    network = load_lpips("alex")

    @torch.inference_mode()
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for p in (a, b))
        return float(network(x, y))

    return distance
