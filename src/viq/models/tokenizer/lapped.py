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

    def forward(self, pixels: Tensor, apart: Tensor | None = None) -> Tensor:
        """Filtered pixels (..., H, W), of any whole number of patches.

        Args:
            apart: patches (rows, cols) whose borders are left as they are.
        """
        matrix, (down, across) = self.matrix(), _borders(apart)
        return _across(_down(pixels, matrix, down), matrix, across)

    def inverse(self, pixels: Tensor, apart: Tensor | None = None) -> Tensor:
        """What `forward` was given."""
        matrix, (down, across) = self.matrix().T, _borders(apart)
        if apart is None:
            return _across(_down(pixels, matrix), matrix)  # the same, in the order it always had
        return _down(_across(pixels, matrix, across), matrix, down)

    def matrix(self) -> Tensor:
        """(16, 16), acting on the pixels across one border."""
        rotation = self.rotation
        same = torch.eye(_HALF, dtype=rotation.dtype, device=rotation.device)
        mirrored = same.flip(0)
        # Sums and differences of pixel i before the border and pixel i after it.
        butterfly = torch.cat([torch.cat([mirrored, same], 1), torch.cat([mirrored, -same], 1)])
        butterfly = butterfly / 2**0.5
        return butterfly.T @ torch.block_diag(same, rotation) @ butterfly


def _borders(apart: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Borders that are left, as `_down` and `_across` want them."""
    if apart is None:
        return None, None
    down, across = apart[1:] | apart[:-1], apart[:, 1:] | apart[:, :-1]
    return (
        down.repeat_interleave(PATCH_SIZE, 1)[:, None],
        across.repeat_interleave(PATCH_SIZE, 0)[..., None],
    )


def _down(pixels: Tensor, matrix: Tensor, left: Tensor | None = None) -> Tensor:
    """Filter (..., H, W) at every border of patches within H; the outer half patches stay.

    Args:
        left: borders (borders, 1, W) that stay as well.
    """
    inner = pixels[..., _HALF:-_HALF, :]
    if not inner.shape[-2]:
        return pixels
    inner = inner.unflatten(-2, (-1, PATCH_SIZE))
    filtered = matrix @ inner
    inner = filtered if left is None else torch.where(left, inner, filtered)
    return torch.cat([pixels[..., :_HALF, :], inner.flatten(-3, -2), pixels[..., -_HALF:, :]], -2)


def _across(pixels: Tensor, matrix: Tensor, left: Tensor | None = None) -> Tensor:
    """The same within W; `left` is (H, borders, 1)."""
    inner = pixels[..., _HALF:-_HALF]
    if not inner.shape[-1]:
        return pixels
    inner = inner.unflatten(-1, (-1, PATCH_SIZE))
    filtered = inner @ matrix.T
    inner = filtered if left is None else torch.where(left, inner, filtered)
    return torch.cat([pixels[..., :_HALF], inner.flatten(-2), pixels[..., -_HALF:]], -1)
