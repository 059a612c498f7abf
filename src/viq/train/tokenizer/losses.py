"""Loss terms. T = patches of all images, D = values per patch, S = slots, d = FSQ dims."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from viq.core.types import Grid
from viq.image.patches import lengths_of
from viq.models.tokenizer.fsq import FSQ


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


def code_perplexity(z_TSd: Tensor, fsq: FSQ) -> float:
    """exp(entropy) of the codes in a batch: how many codes are in even use, 1..codebook size.

    Bounded above by the number of codes in the batch.
    """
    counts = torch.unique(fsq.indices(z_TSd), return_counts=True)[1].float()
    share = counts / counts.sum()
    return float((-(share * share.log()).sum()).exp())
