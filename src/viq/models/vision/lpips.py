"""LPIPS (Zhang et al., 2018): how different two pictures look, by torchmetrics."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from viq.core.errors import first_line, require
from viq.core.types import ViqError

_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}  # as torchvision names


def load_lpips(net: Literal["vgg", "alex"]) -> nn.Module:
    """A frozen network: two batches of pictures (n, 3, height, width), fp32 in [-1, 1], to (n, 1,
    1, 1). Gradients flow to the pictures.

    Raises:
        ViqError: torchmetrics or torchvision is missing or broken, or the weights of VGG-16 or
            AlexNet, which torchvision downloads on first use, cannot be had.
    """
    with require("torchmetrics", "lpips", "the LPIPS distance"):
        from torchmetrics.image.lpip import (  # pyright: ignore[reportMissingImports]
            LearnedPerceptualImagePatchSimilarity,
        )
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # the second: one for another torch
        raise ViqError(
            f"the LPIPS distance needs the torchvision that belongs to torch {torch.__version__} "
            f"({first_line(error)}): pip install 'viq[lpips]', from the index of that torch"
        ) from None
    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net)
    except Exception as error:  # of the network or of a damaged file, of many kinds
        raise ViqError(
            f"the weights of LPIPS could not be loaded ({first_line(error)}): put {_FILES[net]} of "
            f"torchvision into {torch.hub.get_dir()}/checkpoints, or connect to the network"
        ) from error
    return metric.net.requires_grad_(False).eval()
