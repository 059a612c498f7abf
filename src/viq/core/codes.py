"""The codes of one image, and their bytes: what a .viq file holds."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from viq.core.counts import PALETTE, ids_counted, pack_counts, unpack_counts
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
    tile_grid,
)

# magic, version, patch size, tile side, height, width, fingerprint of the tokenizer, CRC-32
_HEADER = struct.Struct("<4sBBHIIQI")


MAGIC = b"ViQc"  # how .viq files begin


_VERSION, _TYPED_VERSION = 1, 2  # the second has one more byte after the header: the dtype
_COUNTED_VERSION = 3  # a number of codes for each patch
_PALETTE_VERSION = 4  # the same, and some patches have palettes

# dtype, whether fourth codes of even places are always kept, digest of the refinement, bytes of
# the counts that follow; then ids, then words.
_COUNTED = struct.Struct("<BBQI")
COUNTED_HEADER_BYTES = _HEADER.size + _COUNTED.size


def detail_slots(grid: Grid, tile: int, meaning: bool) -> np.ndarray:
    """How many of the four ids of each patch (rows, cols) are numbered by its count: all, but with
    `meaning` not the fourth in even rows and columns of a tile.

    Args:
        tile: px, as in `Codes`.
    """
    slots = np.full(grid, CODES_PER_PATCH)
    for where in tile_grid(grid, tile // PATCH_SIZE) if meaning else ():
        slots[where][::2, ::2] -= 1
    return slots


def kept_ids(counts: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Which of the four ids of patches are part of the codes, bool (rows, cols, 4)."""
    kept = np.arange(CODES_PER_PATCH) < ids_counted(counts)[..., None]
    kept[..., -1] |= slots < CODES_PER_PATCH
    return kept


def extra_codes(counts: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """How many extra codes patches have, int64 (rows, cols)."""
    counts = counts.astype(np.int64)
    return np.where(counts >= PALETTE, counts - PALETTE, np.maximum(counts - slots, 0))


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
        counts: uint8 array (rows, cols), how many codes each patch has of its detail, from 1 on;
            None: its four ids. Ids beyond the count are not part of the codes and may be anything;
            a tokenizer's `encode` and `complete` make them say what those before say. 128 and more:
            the first id alone, and a palette of so many extra codes beyond 128.
        extra: uint16 array of the codes beyond the fourth, patch after patch: words that refine
            what the decoder paints, or those of a palette. Empty without counts.
        meaning: with counts, whether the fourth id in even rows and columns of a tile is of what it
            means: then it is there whatever the count, and no part of it.
        refinement: with counts, digest of the part of the tokenizer that reads extra codes.

    Raises:
        CodesError: ids of another dtype or shape, a grid that does not fit the size, or counts that
            do not fit the codes.
    """

    ids: npt.NDArray[np.uint16]
    size: Size
    tile: int = 0
    fingerprint: str = ""
    dtype: str = FLOAT32
    counts: np.ndarray | None = None
    extra: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    meaning: bool = False
    refinement: str = ""

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
        self._check_counts()

    def _check_counts(self) -> None:
        if self.extra.dtype != np.uint16 or self.extra.ndim != 1:
            raise CodesError("extra codes must be uint16, in one dimension")
        wanted = 0
        if self.counts is not None:
            if self.counts.dtype != np.uint8 or self.counts.shape != self.grid:
                raise CodesError(f"counts of codes must be uint8 of shape {self.grid}")
            if not (self.counts % PALETTE).all():
                raise CodesError("a patch has 0 codes, but each has at least one: damaged")
            wanted = int(self.extra_counts.sum())
        if len(self.extra) != wanted:
            raise CodesError(f"{len(self.extra)} extra codes, but counts say {wanted}: damaged")

    @property
    def extra_counts(self) -> np.ndarray:
        """How many extra codes each patch has, int64 (rows, cols)."""
        if self.counts is None:
            return np.zeros(self.grid, np.int64)
        return extra_codes(self.counts, self.slots)

    @property
    def palettes(self) -> np.ndarray:
        """Which patches have a palette, bool (rows, cols)."""
        return np.zeros(self.grid, bool) if self.counts is None else self.counts >= PALETTE

    @property
    def slots(self) -> np.ndarray:
        """How many ids of each patch its count numbers, int64 (rows, cols): see `meaning`."""
        return detail_slots(self.grid, self.tile, self.meaning)

    @property
    def kept(self) -> np.ndarray:
        """Which ids are part of the codes, bool (rows, cols, 4)."""
        if self.counts is None:
            return np.ones(self.ids.shape, bool)
        return kept_ids(self.counts, self.slots)

    @property
    def grid(self) -> Grid:
        """(rows, columns) of patches."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def total(self) -> int:
        """How many codes there are, extra ones included."""
        return int(self.kept.sum()) + len(self.extra)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes alone: two a code, and with counts those of the counts."""
        if self.counts is None:
            return self.ids.size * 2
        return 2 * self.total + len(pack_counts(self.counts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return (
            self.size == other.size
            and self.tile == other.tile
            and self.fingerprint == other.fingerprint
            and self.dtype == other.dtype
            and (self.counts is None) == (other.counts is None)
            and (self.meaning, self.refinement) == (other.meaning, other.refinement)
            and np.array_equal(self.kept, other.kept)
            and np.array_equal(self.ids[self.kept], other.ids[other.kept])
            and np.array_equal(self.extra_counts, other.extra_counts)
            and np.array_equal(self.extra, other.extra)
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
        made in another dtype than float32 have a byte for it before the ids, and version 2. Codes
        with counts have version 3, or 4 where there are palettes: only the ids that count, behind
        packed counts.
        """
        payload = np.ascontiguousarray(self.ids, dtype="<u2").tobytes()
        version = _VERSION
        if self.dtype != FLOAT32:
            version, payload = _TYPED_VERSION, bytes([DTYPES.index(self.dtype)]) + payload
        if self.counts is not None:
            version = _PALETTE_VERSION if self.palettes.any() else _COUNTED_VERSION
            payload = self._counted()
        fields = (
            MAGIC, version, PATCH_SIZE, self.tile, *self.size, int(self.fingerprint or "0", 16)
        )  # fmt: skip
        checksum = zlib.crc32(payload, zlib.crc32(_HEADER.pack(*fields, 0)))
        return _HEADER.pack(*fields, checksum) + payload

    def _counted(self) -> bytes:
        """What follows the header in versions 3 and 4."""
        assert self.counts is not None
        counts, stamp = pack_counts(self.counts), int(self.refinement or "0", 16)
        head = _COUNTED.pack(DTYPES.index(self.dtype), self.meaning, stamp, len(counts))
        ids, extra = self.ids[self.kept].astype("<u2"), self.extra.astype("<u2")
        return head + counts + ids.tobytes() + extra.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Codes:
        """Read what `to_bytes` wrote.

        Args:
            max_pixels: of the image; more are refused.

        Raises:
            CodesError: not ViQ codes, another version, cut short, too long, damaged, or of an
                image that is too large.
        """
        if len(data) < _HEADER.size or data[:4] != MAGIC:
            raise CodesError("these bytes are not ViQ codes: they do not start with a ViQ header")
        magic, version, patch_size, tile, height, width, stamp, checksum = _HEADER.unpack_from(data)
        if not _VERSION <= version <= _PALETTE_VERSION or patch_size != PATCH_SIZE:
            raise CodesError(
                f"codes of format {version} with {patch_size}-px patches: this release reads "
                f"formats {_VERSION} to {_PALETTE_VERSION} with {PATCH_SIZE}-px patches; update viq"
            )
        rows, cols = bounded_grid((height, width), max_pixels)
        typed = int(version == _TYPED_VERSION)
        expected = _HEADER.size + typed + rows * cols * CODES_PER_PATCH * 2
        if len(data) != expected and version < _COUNTED_VERSION:
            raise CodesError(
                f"codes of a {height}x{width} px image take {expected} bytes, got {len(data)}: "
                "the data is cut short or has something appended"
            )
        head = _HEADER.pack(magic, version, patch_size, tile, height, width, stamp, 0)
        payload = memoryview(data)[_HEADER.size :]
        if zlib.crc32(payload, zlib.crc32(head)) != checksum:
            raise CodesError("the checksum of these codes is wrong: the data is damaged")
        fingerprint = f"{stamp:016x}" if stamp else ""
        if version >= _COUNTED_VERSION:
            return cls._from_counted(bytes(payload), (height, width), tile, fingerprint)
        if typed and not 0 < payload[0] < len(DTYPES):
            raise CodesError(f"codes made in dtype number {payload[0]}: update viq")
        ids = np.frombuffer(payload[typed:], dtype="<u2").astype(np.uint16)
        ids = ids.reshape(rows, cols, CODES_PER_PATCH)
        dtype = DTYPES[payload[0]] if typed else FLOAT32
        return cls(ids, (height, width), tile, fingerprint, dtype)

    @classmethod
    def _from_counted(cls, data: bytes, size: Size, tile: int, fingerprint: str) -> Codes:
        """Read what `_counted` wrote. Ids that are not part of the codes are 0.

        Raises:
            CodesError: cut short, too long, or of another dtype.
        """
        if len(data) < _COUNTED.size:
            raise CodesError("codes with counts are cut short")
        dtype, meaning, stamp, length = _COUNTED.unpack_from(data)
        if dtype >= len(DTYPES) or meaning > 1:
            raise CodesError(f"codes with counts made in dtype number {dtype}: update viq")
        rest, (rows, cols) = data[_COUNTED.size :], grid_of(size)
        words = rest[length:]
        if len(words) < 2 * rows * cols:  # before time is spent on counts
            raise CodesError(
                f"codes with counts take at least {2 * rows * cols:,} bytes, got {len(words)}: the "
                "data is cut short"
            )
        counts = unpack_counts(rest[:length], rows, cols)
        ids = np.zeros((*counts.shape, CODES_PER_PATCH), np.uint16)
        slots = detail_slots(grid_of(size), tile, bool(meaning))
        kept = kept_ids(counts, slots)
        here = int(kept.sum())
        expected = 2 * (here + int(extra_codes(counts, slots).sum()))
        if len(words) != expected:
            raise CodesError(
                f"codes with counts take {expected} bytes, got {len(words)}: the data is cut short "
                "or has something appended"
            )
        found = np.frombuffer(words, "<u2").astype(np.uint16)
        ids[kept] = found[:here]
        digest = f"{stamp:016x}" if stamp else ""
        return cls(
            ids, size, tile, fingerprint, DTYPES[dtype],
            counts, found[here:], bool(meaning), digest,
        )  # fmt: skip
