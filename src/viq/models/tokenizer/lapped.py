"""Orthogonal filters across the borders of patches, so that patches coded alone overlap.

A time-domain lapped transform (Tran, Liang and Tu, 2003): before the patches of an image are
coded, the 16 pixels around each border, eight from either side, go through one orthogonal matrix;
after decoding they go through its transpose. An error in one patch then fades into its neighbours
instead of ending in a step. Without quantization the image comes back.

H, W = height and width in px, whole patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viq.core.types import PATCH_SIZE

_HALF = PATCH_SIZE // 2  # px of each side that a border's filter sees


class LappedFilter(nn.Module):
    """The filter and its inverse. Of each pair of pixels that mirror each other at a border, the
    sum stays; the eight differences are rotated by a matrix that is fitted to photos."""

    def __init__(self) -> None:
        super().__init__()
        self.rotation: Tensor
        self.register_buffer("rotation", torch.eye(_HALF))  # orthogonal

    def forward(self, pixels: Tensor) -> Tensor:
        """Filtered pixels (..., H, W), of any whole number of patches."""
        return self._both_ways(pixels, self.matrix())

    def inverse(self, pixels: Tensor) -> Tensor:
        """What `forward` was given."""
        return self._both_ways(pixels, self.matrix().T)

    def matrix(self) -> Tensor:
        """(16, 16), acting on the pixels across one border."""
        rotation = self.rotation
        same = torch.eye(_HALF, dtype=rotation.dtype, device=rotation.device)
        mirrored = same.flip(0)
        # Sums and differences of pixel i before the border and pixel i after it.
        butterfly = torch.cat([torch.cat([mirrored, same], 1), torch.cat([mirrored, -same], 1)])
        butterfly = butterfly / 2**0.5
        return butterfly.T @ torch.block_diag(same, rotation) @ butterfly

    @staticmethod
    def _both_ways(pixels: Tensor, matrix: Tensor) -> Tensor:
        return _across(_down(pixels, matrix), matrix)


def _down(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Filter (..., H, W) at every border of patches within H; the outer half patches stay."""
    inner = pixels[..., _HALF:-_HALF, :]
    if not inner.shape[-2]:
        return pixels
    inner = matrix @ inner.unflatten(-2, (-1, PATCH_SIZE))
    return torch.cat([pixels[..., :_HALF, :], inner.flatten(-3, -2), pixels[..., -_HALF:, :]], -2)


def _across(pixels: Tensor, matrix: Tensor) -> Tensor:
    """The same within W."""
    inner = pixels[..., _HALF:-_HALF]
    if not inner.shape[-1]:
        return pixels
    inner = inner.unflatten(-1, (-1, PATCH_SIZE)) @ matrix.T
    return torch.cat([pixels[..., :_HALF], inner.flatten(-2), pixels[..., -_HALF:]], -1)
