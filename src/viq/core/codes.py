"""The codes of one image, and their bytes: what a .viq file holds."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from viq.core.errors import CodesError
from viq.core.notebook import html_table
from viq.core.types import (
    CODES_PER_PATCH,
    DTYPES,
    FLOAT32,
    MAX_PIXELS,
    PATCH_SIZE,
    Grid,
    Size,
    bounded_grid,
    grid_of,
)

# magic, version, patch size, tile side, height, width, fingerprint of the tokenizer, CRC-32
_HEADER = struct.Struct("<4sBBHIIQI")


_MAGIC = b"ViQc"


_VERSION, _TYPED_VERSION = 1, 2  # the second has one more byte after the header: the dtype


@dataclass(frozen=True, eq=False)
class Codes:
    """The discrete codes of one image.

    Attributes:
        ids: uint16 array (rows, cols, 4). Patches in raster order, the four slots of a patch
            last. A value is an index into the codebook of the tokenizer's FSQ levels.
        size: (height, width) of the original image, px. `decode` cuts its output back to it.
        tile: side in px above which the image was encoded in tiles; 0 if encoded whole.
        fingerprint: of the tokenizer that made the codes (16 hex digits), "" if unknown.
        dtype: in which that tokenizer computed. In others than float32 it makes other codes of a
            few patches in a hundred, under the same fingerprint.

    Raises:
        CodesError: ids of another dtype or shape, or a grid that does not fit the size.
    """

    ids: npt.NDArray[np.uint16]
    size: Size
    tile: int = 0
    fingerprint: str = ""
    dtype: str = FLOAT32

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CodesError(f"codes made in {self.dtype!r}: choose from {', '.join(DTYPES)}")
        if self.ids.dtype != np.uint16:
            raise CodesError(f"codes must be uint16, got {self.ids.dtype}: cast the ids first")
        expected = (*grid_of(self.size), CODES_PER_PATCH)
        if min(self.size) < 1 or self.ids.shape != expected:
            raise CodesError(
                f"an image of {self.size[0]}x{self.size[1]} px has codes of shape {expected}, "
                f"got {self.ids.shape}: ids and size belong to different images"
            )

    @property
    def grid(self) -> Grid:
        """(rows, columns) of patches."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the ids alone: two a code."""
        return self.ids.size * 2

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return (
            self.size == other.size
            and self.tile == other.tile
            and self.fingerprint == other.fingerprint
            and self.dtype == other.dtype
            and np.array_equal(self.ids, other.ids)
        )

    def __repr__(self) -> str:
        rows, cols = self.grid
        return f"Codes({rows}x{cols}x{CODES_PER_PATCH}, size={self.size}, {self.nbytes} bytes)"

    def _repr_html_(self) -> str:
        facts = {
            "picture": f"{self.size[0]}x{self.size[1]} px",
            "patches": f"{self.grid[0]}x{self.grid[1]}, {CODES_PER_PATCH} codes each",
            "bytes": f"{self.nbytes:,}",
            "tokenizer": self.fingerprint or "unknown",
        }
        return html_table("Codes", facts)

    def to_bytes(self) -> bytes:
        """A 28-byte header, then the ids as little-endian uint16, two bytes a code.

        The CRC-32 in the header covers the rest of the header and what follows it. Codes that were
        made in another dtype than float32 have a byte for it before the ids, and version 2.
        """
        payload = np.ascontiguousarray(self.ids, dtype="<u2").tobytes()
        version = _VERSION
        if self.dtype != FLOAT32:
            version, payload = _TYPED_VERSION, bytes([DTYPES.index(self.dtype)]) + payload
        fields = (
            _MAGIC, version, PATCH_SIZE, self.tile, *self.size, int(self.fingerprint or "0", 16)
        )  # fmt: skip
        checksum = zlib.crc32(payload, zlib.crc32(_HEADER.pack(*fields, 0)))
        return _HEADER.pack(*fields, checksum) + payload

    @classmethod
    def from_bytes(cls, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Codes:
        """Read what `to_bytes` wrote.

        Args:
            max_pixels: of the image; more are refused.

        Raises:
            CodesError: not ViQ codes, another version, cut short, too long, damaged, or of an
                image that is too large.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise CodesError("these bytes are not ViQ codes: they do not start with a ViQ header")
        magic, version, patch_size, tile, height, width, stamp, checksum = _HEADER.unpack_from(data)
        if version not in (_VERSION, _TYPED_VERSION) or patch_size != PATCH_SIZE:
            raise CodesError(
                f"codes of format {version} with {patch_size}-px patches: this release reads "
                f"formats {_VERSION} and {_TYPED_VERSION} with {PATCH_SIZE}-px patches; update viq"
            )
        rows, cols = bounded_grid((height, width), max_pixels)
        typed = int(version == _TYPED_VERSION)
        expected = _HEADER.size + typed + rows * cols * CODES_PER_PATCH * 2
        if len(data) != expected:
            raise CodesError(
                f"codes of a {height}x{width} px image take {expected} bytes, got {len(data)}: "
                "the data is cut short or has something appended"
            )
        head = _HEADER.pack(magic, version, patch_size, tile, height, width, stamp, 0)
        payload = memoryview(data)[_HEADER.size :]
        if zlib.crc32(payload, zlib.crc32(head)) != checksum:
            raise CodesError("the checksum of these codes is wrong: the data is damaged")
        if typed and not 0 < payload[0] < len(DTYPES):
            raise CodesError(f"codes made in dtype number {payload[0]}: update viq")
        ids = np.frombuffer(payload[typed:], dtype="<u2").astype(np.uint16)
        ids = ids.reshape(rows, cols, CODES_PER_PATCH)
        fingerprint = f"{stamp:016x}" if stamp else ""
        dtype = DTYPES[payload[0]] if typed else FLOAT32
        return cls(ids, (height, width), tile, fingerprint, dtype)
