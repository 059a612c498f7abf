"""What a variable rate knows of an image: its patches in each number of codes, what the decoder
leaves of them, and palettes.

T = patches of an image in raster order, S = 4 slots, D = values of a patch, n = codes of a patch up
to four, K = directions of a refinement, W = words of a patch at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from viq.core.codes import detail_slots
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid, Size, tile_grid
from viq.image.patches import PatchBatch, denormalize, patchify, unpatchify
from viq.models.tokenizer import counted, palette_search
from viq.models.tokenizer.palette_search import PaletteSearch
from viq.models.tokenizer.transform_quantizer import PixelEncoder

if TYPE_CHECKING:
    from viq.models.tokenizer.inference import Tile
    from viq.models.tokenizer.tokenizer import VisualTokenizer

_ROWS = 4096  # patches whose coefficients are at hand at a time
_MOST_OF_PALETTE = 80  # words; those of the colours of the picture come on top


class SeenImage:
    """An image, its codes of each number up to four, and their errors.

    Args:
        cut: patches (rows*cols, D) of a tile.
        size: (height, width) px of the image.
        tile: px, as in `Codes`.

    Attributes:
        model, grid, size, tile: as given.
        meaning: whether fourth ids of even places are of what they mean.
        slots_T: how many ids of each patch are numbered by its count.
    """

    def __init__(
        self,
        model: VisualTokenizer,
        cut: Callable[[Tile], Tensor],
        grid: Grid,
        size: Size,
        tile: int,
    ) -> None:
        self.model, self.grid, self.size, self.tile = model, grid, size, tile
        self._quantizer, self._refinement = counted.parts_of(model)
        self.meaning = self._quantizer.code.config.shares
        self.slots_T = torch.from_numpy(detail_slots(grid, tile, self.meaning)).flatten()
        self._ids_nhwS = torch.zeros(CODES_PER_PATCH, *grid, CODES_PER_PATCH, dtype=torch.long)
        self._errors_nhw = torch.zeros(CODES_PER_PATCH, *grid)
        self._pixels = torch.zeros(3, grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
        for where in tile_grid(grid, tile // PATCH_SIZE):
            self._look(cut(where), where)

    @property
    def errors_nT(self) -> np.ndarray:
        """Squared errors with one to four codes by the closed form, before the decoder, float32."""
        return self._errors_nhw.flatten(1).numpy()

    def palettes(self, most: int) -> PaletteSearch:
        """Palettes of all patches, of up to so many words."""
        pixels_TP3 = patchify(denormalize(self._pixels).movedim(-1, 0)).unflatten(1, (3, -1)).mT
        inside = torch.zeros(1, *self._pixels.shape[1:], dtype=torch.bool)
        inside[:, : self.size[0], : self.size[1]] = True
        inside_TP = patchify(inside.expand(3, -1, -1)).unflatten(1, (3, -1))[:, 0]
        return palette_search.search(
            pixels_TP3.contiguous().numpy(), inside_TP.numpy(), min(most, _MOST_OF_PALETTE)
        )

    def ids(self, base_T: Tensor) -> Tensor:
        """Completed ids (T, S) for numbers of codes up to a patch's slots."""
        ids_nTS = self._ids_nhwS.flatten(1, 2)
        picked_TS = ids_nTS[base_T - 1, torch.arange(len(base_T))]
        shared_T = self.slots_T < CODES_PER_PATCH
        picked_TS[shared_T, -1] = ids_nTS[0, shared_T, -1]
        return counted.completed(self.model, picked_TS, base_T, self.slots_T)

    def rest(
        self, base_T: Tensor, palettes_T: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the decoder leaves with so many codes: coefficients (T, K), classes (T,), and the
        squared error (T,) of patches, in the domain of the filter.

        Args:
            palettes_T: patches that have palettes; None: none has.
        """
        from viq.models.tokenizer.inference import painted_windows

        base_T = torch.minimum(base_T, self.slots_T)
        ids_hwS = self.ids(base_T).unflatten(0, self.grid)
        rest = self._pixels.clone()
        numbers = tuple(part.unflatten(0, self.grid) for part in (base_T, self.slots_T))
        for rows, cols, patches_hwD in painted_windows(self.model, ids_hwS, numbers):
            y, x = (slice(part.start * PATCH_SIZE, part.stop * PATCH_SIZE) for part in (rows, cols))
            size = (y.stop - y.start, x.stop - x.start)
            rest[:, y, x] -= unpatchify(patches_hwD.flatten(0, 1), size).float().cpu()
        rest[:, self.size[0] :] = 0  # beyond the image nobody looks
        rest[:, :, self.size[1] :] = 0
        code = self._quantizer.code
        apart = None
        if palettes_T is not None and palettes_T.any():
            apart = torch.from_numpy(palettes_T).unflatten(0, self.grid).to(code.basis.device)
        patches_TD = patchify(code.lapped(rest.to(code.basis.device, code.basis.dtype), apart))
        error_T = patches_TD.square().sum(1)
        rest_TK = torch.cat([self._refinement.coefficients(p) for p in patches_TD.split(_ROWS)])
        classes_T = code.classes(ids_hwS.flatten(0, 1))
        return (
            rest_TK.float().cpu().numpy(), classes_T.cpu().numpy(), error_T.float().cpu().numpy()
        )  # fmt: skip

    def _look(self, patches_TD: Tensor, where: Tile) -> None:
        """Codes and errors of the patches of a tile for each number of codes up to four."""
        code, refinement = self._quantizer.code, self._refinement
        grid = (where[0].stop - where[0].start, where[1].stop - where[1].start)
        batch = PatchBatch(patches_TD=patches_TD, grids_hw=(grid,))
        patches_TD = self.model.encoder(batch)  # as they are; whoever watches it is told
        seen = code.analyse(patches_TD.float(), grid)
        mean_T = code.coarse[seen.coarse_T] + code.fine[seen.coarse_T, seen.fine_T]
        outside_T = seen.energy_T - seen.values_TV.square().sum(1)
        values_TV = seen.values_TV.clone()
        values_TV[:, -1] += mean_T
        for count in range(1, CODES_PER_PATCH + 1):
            ids_TS = code.chosen(seen, refinement.tables(code, count), count)
            said_TV = refinement.values(code, ids_TS, count)
            error_T = outside_T + (said_TV - values_TV).square().sum(1)
            self._ids_nhwS[count - 1][where] = ids_TS.unflatten(0, grid).cpu()
            self._errors_nhw[count - 1][where] = error_T.unflatten(0, grid).cpu()
        self._say_meaning(batch, where)
        y, x = (slice(part.start * PATCH_SIZE, part.stop * PATCH_SIZE) for part in where)
        size = (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
        self._pixels[:, y, x] = unpatchify(patches_TD.float(), size).cpu()

    def _say_meaning(self, batch: PatchBatch, where: Tile) -> None:
        """Put meaning into the fourth ids that are left to it."""
        encoder = self.model.encoder
        if not self.meaning or not isinstance(encoder, PixelEncoder):
            return
        said = encoder.meaning(batch)
        assert said is not None
        detail = self._quantizer.code.config.detail
        for ids_hwS in self._ids_nhwS[:, where[0], where[1]]:
            ids_hwS[::2, ::2, -1] = detail + said[0].cpu()
