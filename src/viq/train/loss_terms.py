"""Loss terms: what each is counted in, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from viq.core.types import ViqError

# What each term is divided by, see MicroBatch.counts.
COUNTED = {
    "text": "answers",
    "distill": "images",
    "rmse": "patches",
    "mse": "patches",
    "latents": "images",
    "contrast": "captions",
    "perceptual": "images",
    "adversarial": "patches",
    "discriminator": "patches",
    "features": "images",
    "next": "scored",
    "codes": "patches",
    # Not trained on, only shown:
    "correct": "answers",
    "matched": "captions",
    "psnr": "images",
}


def weighted(
    sums: Mapping[str, Tensor], counts: Mapping[str, float], weights: Mapping[str, float]
) -> Tensor:
    """The loss: each term over its count, times its weight.

    Raises:
        ViqError: a term is asked for that the stage does not have.
    """
    wanted = {name: weight for name, weight in weights.items() if weight}
    if missing := sorted(wanted.keys() - sums.keys()):
        raise ViqError(f"this stage has no losses {missing}, only {', '.join(sums) or 'none'}")
    return torch.stack(
        [
            sums[name].float() * (weight / max(1.0, counts[COUNTED[name]]))
            for name, weight in wanted.items()
        ]
    ).sum()
