"""What the sections of a benchmark of a tokenizer are given."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from PIL import Image

from viq.core.types import ViqError

if TYPE_CHECKING:
    from viq.models.tokenizer.tokenizer import VisualTokenizer

Work = TypeVar("Work")
Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[Work]):
    """The tokenizer that is measured, on what, and how often."""

    tokenizer: VisualTokenizer
    model: str  # what a fresh process loads: a name or a folder
    work: Work
    repeats: int


def chosen_sections(
    sections: Mapping[str, Section],
    names: Collection[str] | None,
    progress: Callable[[str], None] | None,
) -> Iterator[tuple[str, Section]]:
    """(name, section) of those of these names, all if None.

    Args:
        progress: called with the name of each before it is given.

    Raises:
        ViqError: a name that there is not; now, before anything is measured.
    """
    unknown = sorted(set(names or ()) - set(sections))
    if unknown:
        raise ViqError(f"unknown sections {unknown}: choose from {', '.join(sections)}")

    def each() -> Iterator[tuple[str, Section]]:
        for name, section in sections.items():
            if names is None or name in names:
                if progress:
                    progress(name)
                yield name, section

    return each()


def jpeg(image: np.ndarray) -> bytes:
    """A picture (H, W, 3), uint8, as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
