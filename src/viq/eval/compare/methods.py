"""The rows that a comparison is asked for: those that can be made, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from viq.core.types import ViqError
from viq.eval.compare.codecs import QUALITIES, CodecRow
from viq.eval.compare.row import Method, split_rate
from viq.image.codecs import CODECS

EQUAL, NATIVE = "equal", "native"

T = TypeVar("T")


@dataclass(frozen=True)
class Methods:
    """What is compared.

    Attributes:
        rows: in the order asked for.
        first: the tokenizer whose pictures, and with equal bytes whose size, the codecs get; None
            without a tokenizer.
        left_out: name and reason of what was asked for and cannot be made.
    """

    rows: list[Method]
    first: Method | None
    left_out: list[dict[str, str]]

    @property
    def in_turn(self) -> list[Method]:
        """All, the first tokenizer before those that get its bytes."""
        return sorted(self.rows, key=lambda method: method is not self.first)


def make_methods(names: Sequence[str], sizes: str, load: Callable[[str], Method]) -> Methods:
    """The methods of some names.

    Args:
        names: codecs, and tokenizers that `load` takes.
        sizes: `EQUAL` gives a codec the bytes of the first tokenizer, picture by picture; `NATIVE`
            makes a row of each of some qualities.
        load: a tokenizer by its name; raises `ViqError`.

    Raises:
        ViqError: another word for `sizes`, nothing that can be made, or equal bytes without a
            tokenizer.
    """
    if sizes not in (EQUAL, NATIVE):
        raise ViqError(f"--bytes {sizes}: give {EQUAL} or {NATIVE}")
    names = list(dict.fromkeys(names))
    left_out: list[dict[str, str]] = []
    tokenizers = _made([name for name in names if not _is_codec(name)], load, left_out)
    first = next(iter(tokenizers.values()), None)
    if first is None and sizes == EQUAL and any(name in CODECS for name in names):  # no "@BPP"
        why = f": {left_out[0]['reason']}" if left_out else "; name one"
        raise ViqError(
            f"--bytes {EQUAL}: codecs get the bytes of a tokenizer, and there is none{why} "
            f"(--bytes {NATIVE} needs none)"
        )
    prepare = first.prepare if first else None

    def codec(name: str) -> list[Method]:
        qualities = [None] if sizes == EQUAL or name not in CODECS else QUALITIES
        return [CodecRow(name, quality, prepare) for quality in qualities]

    codecs = _made([name for name in names if _is_codec(name)], codec, left_out)
    rows: list[Method] = []
    for name in names:
        rows += codecs.get(name, [])
        rows += [tokenizers[name]] if name in tokenizers else []
    if not rows:
        reason = f": {left_out[0]['reason']}" if left_out else "; name a codec or a tokenizer"
        raise ViqError(f"--with: nothing to compare{reason}")
    return Methods(rows, first, left_out)


def _is_codec(name: str) -> bool:
    return split_rate(name)[0] in CODECS


def _made(
    names: Sequence[str], make: Callable[[str], T], left_out: list[dict[str, str]]
) -> dict[str, T]:
    """What can be made, by name; the others go to `left_out`."""
    made: dict[str, T] = {}
    for name in names:
        try:
            made[name] = make(name)
        except (ViqError, OSError) as error:
            left_out.append({"name": name, "reason": " ".join(str(error).split())})
    return made
