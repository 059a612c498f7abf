"""Arrow columns of codes: how they are made, packed, unpacked and summed up for checks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel, beside, require_plausible
from viq.codec.find import find_model
from viq.core.codes import Codes, detail_slots, extra_codes
from viq.core.counts import pack_counts, unpack_counts
from viq.core.files import BUNDLED
from viq.core.types import CodesError, Size, grid_of

if TYPE_CHECKING:
    import pyarrow as pa

COUNTED = ("code_counts", "extra_codes")  # columns of a store with counts; both are bytes


def coder_of(digest: str, folder: Path) -> EntropyModel | None:
    """The entropy model of codes in a folder: it lies beside them, or comes with the package.

    Args:
        digest: "" for codes that are not compressed, which have none.

    Raises:
        ViqError: there is none, or it is damaged.
    """
    bundled = chain.from_iterable(BUNDLED.glob(f"*/{name}") for name in (ENTROPY_FILE, beside("*")))
    return find_model(digest, folder, bundled) if digest else None


def codes_array(codes: Sequence[Codes | None], coder: EntropyModel | None) -> pa.Array:
    """The column `codes`: lists of uint16, or payloads of the coder; empty where there are none."""
    import pyarrow as pa

    if coder is None:
        return _lists([item.ids if item else np.empty(0, np.uint16) for item in codes])
    payloads = iter(coder.compress([item for item in codes if item]))
    return pa.array([next(payloads) if item else b"" for item in codes], pa.binary())


def decompressed(batch: pa.RecordBatch, coder: EntropyModel, meaning: bool = False) -> pa.Array:
    """The column `codes` as lists of uint16.

    Args:
        meaning: of codes with counts, as in `Codes`.

    Raises:
        CodesError: a payload is damaged; names the row.
    """
    payloads = batch["codes"].to_pylist()
    sizes = list(zip(batch["height"].to_pylist(), batch["width"].to_pylist(), strict=True))
    tiles = batch["tile"].to_pylist() if "tile" in batch.schema.names else [0] * len(sizes)
    full = [i for i, payload in enumerate(payloads) if payload]
    packed = [None] * len(sizes)
    if coder.counted and COUNTED[0] in batch.schema.names:
        packed = batch[COUNTED[0]].to_pylist()

    def decode(rows: Sequence[int]) -> list[Codes]:
        return coder.decompress(
            [payloads[i] for i in rows],
            [sizes[i] for i in rows],
            [tiles[i] for i in rows],
            [_counts(packed[i], sizes[i], payloads[i]) for i in rows],
            meaning,
        )

    try:
        codes = decode(full)
    except CodesError:
        for i in full:  # which row was it?
            try:
                decode([i])
            except CodesError as error:
                raise CodesError(f"row {batch['key'][i].as_py()!r}: {error}") from None
        raise
    ids = [np.empty(0, np.uint16)] * len(payloads)
    for i, item in zip(full, codes, strict=True):
        ids[i] = item.ids
    return _lists(ids)


def _counts(packed: bytes | None, size: Size, payload: bytes) -> np.ndarray | None:
    """Counts of an image, if it has some. Raises `CodesError`."""
    if packed is None:
        return None
    require_plausible(payload, size)  # before time is spent on counts
    return unpack_counts(packed, *grid_of(size))


def counted_arrays(codes: Sequence[Codes | None]) -> list[pa.Array]:
    """The columns of counts and of extra codes: bytes, empty where there is no image."""
    import pyarrow as pa

    counts = [b"" if c is None or c.counts is None else pack_counts(c.counts) for c in codes]
    extra = [b"" if c is None else c.extra.astype("<u2").tobytes() for c in codes]
    return [pa.array(counts, pa.binary()), pa.array(extra, pa.binary())]


def with_counts(codes: Codes, counts: bytes, extra: bytes, refinement: str, meaning: bool) -> Codes:
    """The codes of a row with what `counted_arrays` made of it.

    Raises:
        CodesError: counts and extra codes do not fit each other.
    """
    found = unpack_counts(counts, *codes.grid)
    wanted = extra_codes(found, detail_slots(grid_of(codes.size), codes.tile, meaning)).sum()
    if len(extra) != 2 * wanted:
        raise CodesError(f"has {len(extra)} bytes of extra codes where counts say {2 * wanted}")
    words = np.frombuffer(extra, "<u2").astype(np.uint16)
    return replace(codes, counts=found, extra=words, meaning=meaning, refinement=refinement)


def checksum(batch: pa.RecordBatch | pa.Table, numbers: Sequence[str]) -> int:
    """CRC-32 of keys, numbers and codes, with their counts if they have them.

    The checksums inside Parquet cover its pages, but neither their headers nor the footer, and a
    flipped bit there can give other values, rows in the wrong place, or fewer.
    """
    keys, codes = batch["key"].to_pylist(), batch["codes"]
    total = zlib.crc32(repr(keys).encode(errors="surrogatepass"))
    for name in numbers:
        total = zlib.crc32(batch[name].to_numpy().astype("<i4").tobytes(), total)
    for chunk in codes.chunks if hasattr(codes, "chunks") else [codes]:
        if hasattr(chunk, "flatten"):  # lists; their lengths follow from the numbers
            total = zlib.crc32(chunk.flatten().to_numpy().astype("<u2", copy=False).data, total)
        else:
            for payload in chunk.to_pylist():
                total = zlib.crc32(payload, total)
    for name in COUNTED if COUNTED[0] in batch.schema.names else ():
        for payload in batch[name].to_pylist():
            total = zlib.crc32(payload, total)
    return total


def _lists(ids: Sequence[np.ndarray]) -> pa.ListArray:
    import pyarrow as pa

    ends = np.cumsum([0, *(item.size for item in ids)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate([i.ravel() for i in ids])))
