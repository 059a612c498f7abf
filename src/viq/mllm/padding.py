"""Token ids of several lengths to one batch, by the arguments that transformers has for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from viq.core.types import IGNORE, IMAGE_TOKEN, ViqError
from viq.core.untrusted import whole_number

NAMES = ("padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length")


@dataclass(frozen=True)
class Padding:
    """How rows become a batch.

    Attributes:
        fill: True or "longest": to the longest row; "max_length": to that; False: rows must be
            equally long.
        side: "left", as generation needs it, or "right".
        multiple: lengths are multiples of it.
        cut: whether rows above `length` are cut; never within an image.
        length: tokens, for `cut` and `fill`.
        cut_side: from which end.
    """

    fill: bool | str = True
    side: str = "left"
    multiple: int = 1
    cut: bool = False
    length: int = 0
    cut_side: str = "right"

    @classmethod
    def of(cls, given: Mapping[str, Any], longest: int, cut_side: str) -> Padding:
        """What arguments of a call ask for.

        Args:
            given: those of `NAMES` that were given.
            longest: tokens where `max_length` is not given.

        Raises:
            ViqError: a value that transformers does not know, or that would do nothing.
        """
        fill = _one_of(given, "padding", True, (True, False, "longest", "max_length"))
        side = _one_of(given, "padding_side", "left", ("left", "right"))
        cut = _one_of(given, "truncation", False, (False, True, "longest_first", "only_first"))
        length = given.get("max_length")
        multiple = given.get("pad_to_multiple_of")
        return cls(
            fill=fill,
            side=side,
            multiple=1
            if multiple is None
            else whole_number(multiple, "pad_to_multiple_of", 1, 2**20),
            cut=bool(cut),
            length=longest if length is None else whole_number(length, "max_length", 1, 2**31),
            cut_side=cut_side,
        )

    def batch(
        self,
        rows: Sequence[tuple[list[int], list[int]]],
        pad: int,
        image: int,
        names: Sequence[str],
    ) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels`, (B, L) each, int64.

        Args:
            rows: ids and labels of each sequence.
            pad, image: ids of the tokens that fill up and that stand for images.
            names: of the sequences, in errors.

        Raises:
            ViqError: an image would be cut, or rows differ in length and may not be filled up.
        """
        if self.cut:
            rows = [self._cut(row, name) for row, name in zip(rows, names, strict=True)]
        longest = max(len(ids) for ids, _ in rows)
        if self.fill == "max_length":
            longest = max(longest, self.length)
        if self.fill is False and any(len(ids) < longest for ids, _ in rows):
            raise ViqError("padding=False, but the samples differ in length; give padding=True")
        if self.fill is not False:
            longest += -longest % self.multiple

        def filled(values: Sequence[int], fill: int) -> list[int]:
            more = [fill] * (longest - len(values))
            return [*more, *values] if self.side == "left" else [*values, *more]

        ids_BL = torch.tensor([filled(ids, pad) for ids, _ in rows])
        return {
            "input_ids": ids_BL.masked_fill(ids_BL == IMAGE_TOKEN, image),
            "attention_mask": torch.tensor([filled([1] * len(ids), 0) for ids, _ in rows]),
            "labels": torch.tensor([filled(labels, IGNORE) for _, labels in rows]),
        }

    def _cut(self, row: tuple[list[int], list[int]], name: str) -> tuple[list[int], list[int]]:
        ids, labels = row
        kept = slice(self.length) if self.cut_side == "right" else slice(-self.length, None)
        if ids[kept].count(IMAGE_TOKEN) < ids.count(IMAGE_TOKEN):
            raise ViqError(
                f"{name}: max_length {self.length} would cut an image off its {len(ids)} tokens; "
                "give a larger one, or smaller images"
            )
        return ids[kept], labels[kept]


def _one_of(given: Mapping[str, Any], name: str, otherwise: Any, known: tuple[Any, ...]) -> Any:
    value = given.get(name)
    if value is None:
        return otherwise
    if not any(type(value) is type(one) and value == one for one in known):
        raise ViqError(f"{name}: {value!r:.100} is not known; give {' or '.join(map(repr, known))}")
    return value
