"""Loss terms: which each kind of stage has, and those of pixels.

T = patches of all images, D = values per patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from viq.core.types import Grid
from viq.image.patches import lengths_of

# By kind of stage: of each term, what it is divided by (`MicroBatch.counts`).
TERMS: Mapping[str, Mapping[str, str]] = {
    "tower": {"contrast": "captions", "matched": "captions"},
    "align": {
        "text": "answers",
        "distill": "images",
        "rmse": "patches",
        "mse": "patches",
        "latents": "images",
        "correct": "answers",
        "psnr": "images",
    },
    "transform": {},  # fitted in closed form, as the two others without terms
    "refinement": {},
    "entropy": {},
    "decoder": {
        "rmse": "patches",
        "mse": "patches",
        "perceptual": "images",
        "features": "images",
        "adversarial": "patches",
        "discriminator": "patches",
        "psnr": "images",
    },
}
# Of those that are only logged, never trained on: their names in the log.
METRICS = {"correct": "answer_accuracy", "matched": "caption_accuracy", "psnr": "psnr"}


def image_mse(
    predicted_TD: Tensor, target_TD: Tensor, mask_TD: Tensor, grids_hw: Sequence[Grid]
) -> Tensor:
    """Mean squared error (n,) of each image, pixels in [-1, 1], padding left out."""
    lengths = lengths_of(grids_hw)
    squared = ((predicted_TD - target_TD).square() * mask_TD).sum(-1).split(lengths)
    counts = mask_TD.sum(-1).split(lengths)
    return torch.stack([s.sum() / c.sum() for s, c in zip(squared, counts, strict=True)])


def mse_sum(mse_n: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
    """Mean squared error of each image times its patches, summed: what the paper writes."""
    return (mse_n * mse_n.new_tensor(lengths_of(grids_hw))).sum()


def rmse_sum(mse_n: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
    """Root mean squared error of each image times its patches, summed.

    The root keeps a few busy pictures from drowning all others, as PSNR, a mean of logarithms,
    asks for.
    """
    return ((mse_n + 1e-5).sqrt() * mse_n.new_tensor(lengths_of(grids_hw))).sum()


def psnr(mse_n: Tensor) -> Tensor:
    """Mean PSNR in dB of images with these errors, pixels in [-1, 1] (a range of 2)."""
    return (10 * (4 / mse_n.clamp_min(1e-8)).log10()).mean()
