"""Bits a code and speed of ways to store codes: plain, zstd, Huffman, and entropy models of
`viq.codec`.

Each image is packed alone, as a row of a store is, so that any row can be read without the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from viq.codec.entropy_model import EntropyModel
from viq.codec.level_network import LevelNetwork
from viq.core.codes import Codes
from viq.core.measure import compare
from viq.core.types import CODES_PER_PATCH
from viq.train.entropy import EntropyConfig

Pack = Callable[[], Sequence[Any]]
_HUFFMAN_CODES = 20000  # that are coded one by one from Python, for its speed


def packing(
    codes: Sequence[Codes],
    model: EntropyModel,
    repeats: int,
    baselines: Mapping[str, EntropyModel] | None = None,
) -> dict[str, Any]:
    """A row for each way: `bits_per_code`, `rgb_ratio`, and codes a second in and out.

    Args:
        codes: not those that the entropy model was fitted to.
        baselines: other entropy models, by name; `viq_over` has, for each, how many times as fast
            `model` is, in and out.
    """
    plain = [item.ids.astype("<u2").tobytes() for item in codes]
    sizes, tiles = [item.size for item in codes], [item.tile for item in codes]
    total = sum(item.ids.size for item in codes)
    pixels = sum(height * width for height, width in sizes)
    ways: dict[str, tuple[Pack, Callable[[Sequence[Any]], Any]]] = {
        "uint16": (
            lambda: [item.ids.astype("<u2").tobytes() for item in codes],
            lambda rows: [np.frombuffer(row, "<u2") for row in rows],
        ),
        "zstd": (lambda: [_zstd(row) for row in plain], lambda rows: list(map(_unzstd, rows))),
        "Huffman of bytes (zlib)": (
            lambda: [_huffman_bytes(row) for row in plain],
            lambda rows: [zlib.decompress(row) for row in rows],
        ),
        "viq": _many(model, codes),
        "viq, one by one": (
            lambda: [model.compress([item])[0] for item in codes],
            lambda rows: [
                model.decompress([row], [size], [tile])
                for row, size, tile in zip(rows, sizes, tiles, strict=True)
            ],
        ),
    }
    others = baselines or {}
    ways |= {name: _many(other, codes) for name, other in others.items()}
    packed = {name: way[0]() for name, way in ways.items()}
    assert model.decompress(packed["viq"], sizes, tiles) == list(codes)
    encoding = compare({name: way[0] for name, way in ways.items()}, repeats)
    decoding = compare(
        {name: partial(ways[name][1], rows) for name, rows in packed.items()}, repeats
    )
    table = {
        name: {
            "bits_per_code": 8 * sum(map(len, rows)) / total,
            "rgb_ratio": 3 * pixels / sum(map(len, rows)),
            "encode_codes_per_s": total / encoding[name]["median_s"],
            "decode_codes_per_s": total / decoding[name]["median_s"],
        }
        for name, rows in packed.items()
    }
    over = {
        name: [times[name]["median_s"] / times["viq"]["median_s"] for times in (encoding, decoding)]
        for name in others
    }
    table["Huffman of codes"] = _huffman_codes(codes, total, pixels, repeats)
    return {"images": len(codes), "codes": total, "ways": table, "viq_over": over}


def untrained_network(levels: Sequence[int], fingerprint: str) -> LevelNetwork:
    """The network that FSQ codes of release 0.1 have, of weights 0: as fast as a trained one, and
    without any gain in bits."""
    k, wide, hidden = CODES_PER_PATCH * len(levels), max(levels), EntropyConfig.hidden
    inputs = [3 * (k + 1), *[hidden] * (EntropyConfig.depth - 1)]
    tensors = {
        "embed": np.zeros((k, wide, hidden), np.int16),
        "head.weight": np.zeros((k, wide, hidden), np.int16),
        "head.bias": np.zeros((k, wide), np.int32),
    }
    for i, width in enumerate(inputs):
        tensors[f"context.{i}.weight"] = np.zeros((hidden, width), np.int16)
        tensors[f"context.{i}.bias"] = np.zeros(hidden, np.int32)
    return LevelNetwork(tensors, levels, fingerprint)


def _many(
    model: EntropyModel, codes: Sequence[Codes]
) -> tuple[Pack, Callable[[Sequence[Any]], Any]]:
    """All codes in one call."""
    sizes, tiles = [item.size for item in codes], [item.tile for item in codes]
    return (
        lambda: model.compress(codes),
        lambda rows: model.decompress(rows, sizes, tiles),
    )


def _zstd(data: bytes) -> bytes:
    import pyarrow as pa

    return len(data).to_bytes(4, "little") + pa.Codec("zstd").compress(data, asbytes=True)


def _unzstd(data: bytes) -> bytes:
    import pyarrow as pa

    size = int.from_bytes(data[:4], "little")
    return pa.Codec("zstd").decompress(data[4:], size, asbytes=True)


def _huffman_bytes(data: bytes) -> bytes:
    packer = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def _huffman_codes(
    codes: Sequence[Codes], total: int, pixels: int, repeats: int
) -> dict[str, float]:
    """Whole codes as symbols, with the frequencies of these very images: the best it can do.

    The table itself, larger than many stores, is not counted. The speed is that of calls from
    Python, one a code.
    """
    symbol: Any = import_module("constriction").symbol
    ids = np.concatenate([item.ids.ravel() for item in codes]).astype(np.int64)
    _, numbers, counts = np.unique(ids, return_inverse=True, return_counts=True)
    shares = (counts / counts.sum()).astype(np.float64)
    writing = symbol.huffman.EncoderHuffmanTree(shares)
    reading = symbol.huffman.DecoderHuffmanTree(shares)
    some = numbers[:_HUFFMAN_CODES].tolist()

    def encode(symbols: list[int]) -> Any:
        coder = symbol.QueueEncoder()
        for number in symbols:
            coder.encode_symbol(number, writing)
        return coder.get_compressed_and_bitrate()

    _, bits = encode(numbers.tolist())
    few, _ = encode(some)

    def decode() -> list[int]:
        coder = symbol.QueueDecoder(few)
        return [coder.decode_symbol(reading) for _ in some]

    assert decode() == some
    times = compare({"encode": lambda: encode(some), "decode": decode}, repeats)
    return {
        "bits_per_code": bits / total,
        "rgb_ratio": 3 * pixels / (bits / 8),
        "encode_codes_per_s": len(some) / times["encode"]["median_s"],
        "decode_codes_per_s": len(some) / times["decode"]["median_s"],
    }
