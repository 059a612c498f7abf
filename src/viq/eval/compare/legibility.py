"""What an OCR reads of a picture: RapidOCR, which carries its models in its package."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from PIL import Image

from viq.core.types import ViqError
from viq.metrics.text import character_errors


class Reading(Protocol):
    """What reads the text of a picture."""

    def read(self, image: Image.Image) -> str: ...


class Reader:
    """Text of pictures.

    Raises:
        ViqError: rapidocr or onnxruntime is not installed.
    """

    def __init__(self) -> None:
        if find_spec("onnxruntime") is None or find_spec("rapidocr") is None:
            raise ViqError("--ocr: needs rapidocr and onnxruntime: pip install 'viq[ocr]'")
        options = {"Global.log_level": "critical"}  # else it names its files, and empty pictures
        self._engine: Any = import_module("rapidocr").RapidOCR(params=options)

    def read(self, image: Image.Image) -> str:
        """The lines of an RGB picture, from above, joined by spaces; "" if it finds none."""
        found = self._engine(np.asarray(image)[..., ::-1])  # it takes blue first
        return " ".join(found.txts or ())


class Originals:
    """What is written on the originals: their transcripts, else what is read from them."""

    def __init__(self, reader: Reading | None) -> None:
        self._reader = reader
        self._transcript: str | None = None
        self._read: dict[tuple[tuple[int, int], bytes], str] = {}
        self._figures: list[tuple[int, int]] = []  # errors and characters, against transcripts

    def start(self, image: Image.Image, transcript: str | None) -> None:
        """Begin with a picture."""
        self._read.clear()
        self._transcript = transcript
        if self._reader and transcript is not None:
            self._figures.append(character_errors(self._reader.read(image), transcript))

    def text(self, picture: Image.Image) -> str | None:
        """The text that a reconstruction of what a method sees of it should have."""
        if self._reader is None:
            return None
        if self._transcript is not None:
            return self._transcript
        key = picture.size, picture.tobytes()
        if key not in self._read:
            self._read[key] = self._reader.read(picture)
        return self._read[key]

    def summary(self) -> dict[str, Any] | None:
        """As `Comparison.result` has it."""
        if self._reader is None:
            return None
        characters = sum(count for _, count in self._figures)
        errors = sum(wrong for wrong, _ in self._figures)
        accuracy = max(0.0, 1 - errors / characters) if characters else None
        return {"against": "transcript" if self._figures else "reading", "original": accuracy}
