"""What is in a store, and how two differ: `viq store stats`, `viq store diff`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from viq.core.levels import codebook_size
from viq.core.remote import Location
from viq.metrics.codebook import code_counts, summarize_counts
from viq.store.folder import Store
from viq.store.rows import CodeRow

_SHOWN = 10  # keys of each kind of difference


def stats(path: Location, progress: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Counts, sizes, bytes and bits a code, use of the codebook and of levels; JSON-able.

    Bits a code are those of codes alone, whatever rides along.

    Args:
        progress: called for each row.

    Raises:
        CodesError: no finished store, or damaged.
    """
    store = Store(path)
    levels = store.info.levels
    counts = np.zeros(codebook_size(levels), np.int64) if levels else None
    rows = samples = codes = 0
    heights: list[int] = []
    widths: list[int] = []
    tiles = Counter[int]()
    for row in store.rows(columns=()):
        rows += 1
        progress()
        samples += row.image_index == 0
        if row.codes is not None:
            heights.append(row.codes.size[0])
            widths.append(row.codes.size[1])
            tiles[row.codes.tile] += 1
            codes += row.codes.total
            if counts is not None:
                counts += code_counts(row.codes.ids, levels)
    height, width = np.array(heights, np.int64), np.array(widths, np.int64)
    patches = -(-height // 16) * -(-width // 16)
    pixels = int((height * width).sum())
    on_disk = packed = 0
    for shard in store.shards:
        with store.reader(shard) as reader:
            packed += reader.codes_bytes()
            on_disk += reader.path.stat().st_size
    facts: dict[str, Any] = {
        "model": store.info.model,
        "fingerprint": store.info.fingerprint,
        "entropy_model": store.info.entropy,
        "shards": len(store.shards),
        "samples": samples,
        "rows": rows,
        "images": len(heights),
        "columns": dict(store.index.columns),
        "megapixels": round(pixels / 1e6, 3),
        "codes": codes,
        "bytes": on_disk,
        "bytes_of_codes": packed,
        "bits_per_code": round(8 * packed / codes, 3) if codes else None,
        "rgb_bytes_per_byte_of_codes": round(3 * pixels / packed, 1) if codes else None,
    }
    if heights:
        for name, values in (("height", height), ("width", width), ("patches", patches)):
            low, middle, high = np.percentile(values, [0, 50, 100]).astype(int).tolist()
            facts[name] = {"least": low, "median": middle, "greatest": high}
        facts["tiled"] = {str(tile): count for tile, count in sorted(tiles.items())}
    if counts is not None and codes:
        facts["code_use"] = summarize_counts(counts, levels)
    return facts


def diff(first: Location, second: Location) -> dict[str, Any]:
    """What differs between two stores, row by row, whatever their shards and order; JSON-able.

    `equal` is whether they have the same rows: keys, codes, sizes, tiles and extras.

    Raises:
        CodesError: one is no finished store, or damaged.
    """
    a, b = Store(first), Store(second)
    known = {(row.key, row.image_index): _digests(row) for row in a.rows()}
    total, same, rows = len(known), 0, 0
    kinds: dict[str, list[str]] = {"only_in_first": [], "only_in_second": [], "codes_differ": [],
                                   "extras_differ": []}  # fmt: skip
    for row in b.rows():
        rows += 1
        before = known.pop((row.key, row.image_index), None)
        if before is None:
            kinds["only_in_second"].append(_name(row.key, row.image_index))
            continue
        now = _digests(row)
        if before[0] != now[0]:
            kinds["codes_differ"].append(_name(row.key, row.image_index))
        if before[1] != now[1]:
            kinds["extras_differ"].append(_name(row.key, row.image_index))
        same += before == now
    kinds["only_in_first"] = [_name(*key) for key in known]
    return {
        "equal": a.info.fingerprint == b.info.fingerprint and not any(kinds.values()),
        "fingerprints": [a.info.fingerprint, b.info.fingerprint],
        "rows": [total, rows],
        "same": same,
        **{kind: len(keys) for kind, keys in kinds.items()},
        "examples": {kind: sorted(keys)[:_SHOWN] for kind, keys in kinds.items() if keys},
    }


def _name(key: str, image_index: int) -> str:
    return f"{key}#{image_index}" if image_index else key


def _digests(row: CodeRow) -> tuple[bytes, bytes]:
    """Of codes, and of extras."""
    codes = row.codes
    ids = codes.ids.astype("<u2").tobytes() + repr((codes.size, codes.tile)).encode() if codes \
        else b""  # fmt: skip
    extras = repr(sorted((k, v) for k, v in row.extras.items() if v is not None)).encode()
    return _digest(ids), _digest(extras)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
