"""Seconds and memory of the methods that are compared.

Imports neither PyTorch nor a method before it is needed: the memory of a codec is measured in a
process that has nothing else to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from viq.core.errors import ViqError
from viq.core.measure import compare, peak_memory

if TYPE_CHECKING:
    from viq.eval.compare.row import Encoded, Method, Prepared

# What a method did with a picture: what it saw of it, the quality, and what came of it.
Work = Sequence[tuple["Prepared", "int | None", "Encoded"]]


def seconds(
    methods: Sequence[Method], works: Mapping[str, Work], repeats: int
) -> dict[str, dict[str, float]]:
    """Time the methods in turn on pictures that they have encoded before.

    A codec is timed at the quality that was found: the search for it is no part of encoding.

    Args:
        works: by name of a method, at least one picture.
        repeats: timed runs.

    Returns:
        For each name encode_s and decode_s: seconds a picture, medians over the runs.
    """
    spent = {
        step: compare({m.name: run(m, works[m.name]) for m in methods}, repeats)
        for step, run in (("encode_s", _encoding), ("decode_s", _decoding))
    }
    return {
        method.name: {
            step: found[method.name]["median_s"] / len(works[method.name])
            for step, found in spent.items()
        }
        for method in methods
    }


def memory(method: Method, work: Work, device: str, tile: int | None) -> float | None:
    """Peak memory in MiB of a fresh process that encodes and decodes the first picture.

    Python, its libraries and the weights are part of it. None where the system does not tell.

    Raises:
        ViqError: that process failed.
    """
    sample, quality, _ = work[0]
    is_codec = method.kind == "codec"
    with TemporaryDirectory(prefix="viq-") as folder:
        path = Path(folder, "picture.png")
        (sample.picture if is_codec else sample.image).save(path)
        name = method.series if is_codec else method.name
        try:
            return peak_memory(round_trip, str(path), name, is_codec, quality, device, tile)
        except RuntimeError as error:
            raise ViqError(f"{method.name}: its memory is not known: {error}") from None


def round_trip(
    path: str, name: str, is_codec: bool, quality: int | None, device: str, tile: int | None
) -> None:
    """Encode and decode a picture once, in a process of its own."""
    from viq.image.open import open_image

    method: Method
    if is_codec:
        from viq.eval.compare.codecs import CodecRow

        method = CodecRow(name, quality)
    else:
        from viq.eval.compare.tokenizers import load_tokenizer_row

        method = load_tokenizer_row(name, device=device, tile=tile)
    sample = method.prepare(open_image(path))
    method.decode(method.encode(sample, quality))


def _encoding(method: Method, work: Work) -> Callable[[], Any]:
    return lambda: [method.encode(sample, setting) for sample, setting, _ in work]


def _decoding(method: Method, work: Work) -> Callable[[], Any]:
    return lambda: [method.decode(encoded) for _, _, encoded in work]
