"""Tokenizers and codecs on the same pictures, with the same figures.

    comparison = compare(open_source("photos"), ["viq-tiny", "jpeg"], Options(crop=256))
    comparison.result["rows"][0]["psnr"]

Each reconstruction is compared with what its method saw: tokenizers of others take squares of one
size, so they resize and crop, and the size stands beside their figures. Codecs get the pictures of
the first tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

import viq
from viq.core.measure import machine
from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.eval.compare.cost import memory, seconds
from viq.eval.compare.figures import Measure, Networks, totals
from viq.eval.compare.legibility import Originals, Reading
from viq.eval.compare.methods import EQUAL, Methods, make_methods
from viq.eval.compare.row import Encoded, Method, Prepared
from viq.eval.compare.tokenizers import load_tokenizer_row
from viq.report.compare_page import Part, section

_TRANSCRIPT = "transcript"  # the column that is taken for one where no other is named


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compare.

    Attributes:
        crop: px a side of the central square that every picture becomes; None: as they are.
        bytes: "equal" or "native", see `make_methods`.
        each: pictures at most of each table or folder, the first; None: all.
        limit: pictures at most of all of these, the first; None: all.
        tile: of our tokenizers, as in `VisualTokenizer.encode`.
        compress: of our tokenizers with a rate of their own, as in `TokenizerRow`.
        device: of our tokenizers.
        transcript: the column of what is written on a picture; None: "transcript", if there is one.
        timed: pictures that speed is measured on, the first.
        repeats: timed runs; 0 measures no speed.
        memory: whether to measure it, in a fresh process a row.
        shown: pictures of the page, the first.

    Raises:
        ViqError: a number below what has a meaning.
    """

    crop: int | None = None
    bytes: str = EQUAL
    each: int | None = None
    limit: int | None = None
    tile: int | None = None
    compress: bool = False
    device: str = "cpu"
    transcript: str | None = None
    timed: int = 4
    repeats: int = 3
    memory: bool = False
    shown: int = 6

    def __post_init__(self) -> None:
        least = {"crop": 1, "each": 1, "limit": 1, "timed": 1, "repeats": 0, "shown": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ViqError(f"--{name} {value}: give at least {low}")


@dataclass(frozen=True)
class Comparison:
    """Figures, and what a page shows of the pictures.

    Attributes:
        result: what `json.dumps(..., allow_nan=False)` accepts:

            rows: for each method name, kind ("codec" or "tokenizer"), series, licence, note, images
                (how many it made), over (files of a codec that keep not to the bytes, as even the
                lowest quality takes more), size ([height, width] of what it sees, None if they
                differ), the figures of `totals`; encode_s and decode_s, seconds a picture; and
                peak_mib, None where it was not measured.
            left_out: name and reason of each method that made nothing.
            images: key, height, width, and rows: by name of a method quality, size, bits and the
                figures of `Measure`, or the reason why it made nothing of this picture.
            failed: key and reason of each picture that cannot be read.
            text: None without a reader; against ("transcript" or "reading"), and original: the
                accuracy of what is read from the originals, None against a reading of theirs.
            settings, machine.
        sections: for `viq.report.compare_page.write_page`.
    """

    result: dict[str, Any]
    sections: list[dict[str, Any]]


def compare(
    source: Source,
    names: Sequence[str],
    options: Options | None = None,
    *,
    networks: Networks | None = None,
    reader: Reading | None = None,
    load: Callable[[str], Method] | None = None,
    progress: Callable[[], None] | None = None,
) -> Comparison:
    """Encode and decode every picture with every method, and measure what comes back.

    A picture that cannot be read, and a method that cannot be made or fails on a picture, are
    listed with the reason; the rest is done.

    Args:
        source: rows with pictures; of a row with several the first is taken.
        names: codecs (jpeg, webp, avif) and tokenizers (`load_tokenizer_row`), in the order of the
            table.
        networks: what compares pictures by eye; default those of this machine.
        reader: also counts how many characters are still legible.
        load: a tokenizer by its name; default `load_tokenizer_row`.
        progress: called after each picture.

    Raises:
        ViqError: no picture that can be read, no method that can be made, or wrong options.
    """
    options = options or Options()

    def load_row(name: str) -> Method:
        return load_tokenizer_row(
            name, device=options.device, tile=options.tile, compress=options.compress
        )

    methods = make_methods(names, options.bytes, load or load_row)
    networks = networks or Networks.found()
    run = _Run(methods, options, Measure(networks, reader), reader)
    for key, image, wanted in _opened(source, options, run.failed):
        if image is not None:
            run.add(key, image, wanted)
        if progress is not None:
            progress()
    if not run.images:
        reason = f": {run.failed[0]['reason']}" if run.failed else ""
        raise ViqError(f"no picture to compare{reason}")
    return Comparison(run.result(networks), run.sections)


def chosen(source: Source, each: int | None, limit: int | None) -> list[int]:
    """Numbers of the rows that are compared, by `each` and `limit` of `Options`."""
    first, found = 0, list[int]()
    for rows in source.shards:
        found += range(first, first + min(rows, each or rows))
        first += rows
    return found[:limit]


def _opened(
    source: Source, options: Options, failed: list[dict[str, str]]
) -> Iterator[tuple[str, Image.Image | None, str | None]]:
    """Key, RGB picture and transcript of each row; what cannot be read goes to `failed`."""
    for index in chosen(source, options.each, options.limit):
        key, image, wanted = source.key(index), None, None
        try:
            row = source[index]
            image = row.open()
            wanted = _transcript(row.extras, options.transcript, row.where)
        except ViqError as error:
            failed.append({"key": key, "reason": str(error)})
            image = None
        if image is not None and options.crop is not None:
            image = ImageOps.fit(image, (options.crop, options.crop), Image.Resampling.BICUBIC)
        yield key, image, wanted


def _transcript(extras: dict[str, Any], column: str | None, where: str) -> str | None:
    """The text of a row's transcript; None where none was asked for and none is there."""
    text = extras.get(column or _TRANSCRIPT)
    if column is not None and not isinstance(text, str):
        raise ViqError(f"{where}: has no text in the column {column!r}; see --transcript")
    return text if isinstance(text, str) else None


@dataclass
class _Gathered:
    """What is known of a method after some pictures."""

    figures: list[dict[str, Any]] = field(default_factory=list)
    features: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    work: list[tuple[Prepared, int | None, Encoded]] = field(default_factory=list)
    over: int = 0
    reason: str = ""  # of its first failure


class _Run:
    """Pictures one after another, each by all methods."""

    def __init__(
        self, methods: Methods, options: Options, measure: Measure, reader: Reading | None
    ) -> None:
        self._methods, self._options, self._measure = methods, options, measure
        self._originals = Originals(reader)
        self._gathered = {method.name: _Gathered() for method in methods.rows}
        self.images: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []
        self.sections: list[dict[str, Any]] = []

    def add(self, key: str, image: Image.Image, transcript: str | None) -> None:
        """Encode, decode and measure a picture by every method."""
        self._originals.start(image, transcript)
        found: dict[str, dict[str, Any]] = {}
        parts: dict[str, Part] = {}
        max_bytes = None
        for method in self._methods.in_turn:
            name = method.name
            try:
                sample, restored, found[name] = self._one(method, image, max_bytes)
            except ViqError as error:
                found[name] = {"reason": str(error)}
                self._gathered[name].reason = self._gathered[name].reason or f"{key}: {error}"
                continue
            if method is self._methods.first:
                max_bytes = found[name]["bits"] / 8
            if len(self.sections) < self._options.shown:
                parts[name] = method.series, sample.picture, restored, found[name]
        rows = {method.name: found[method.name] for method in self._methods.rows}
        self.images.append({"key": key, "height": image.height, "width": image.width, "rows": rows})
        if parts:
            self.sections.append(section(key, image, [parts[name] for name in self._shown(found)]))

    def _one(
        self, method: Method, image: Image.Image, max_bytes: float | None
    ) -> tuple[Prepared, Image.Image, dict[str, Any]]:
        """What a method saw of a picture, what came back, and the figures, which are also kept."""
        sample = method.prepare(image)
        setting = method.setting(sample, max_bytes)
        encoded = method.encode(sample, setting)
        restored = method.decode(encoded)
        original = sample.picture
        wanted = self._originals.text(original)
        figures, features = self._measure(original, restored, wanted)
        pixels = original.width * original.height
        figures = {
            "quality": setting,
            "size": [original.height, original.width],
            "pixels": pixels,
            "bits": encoded.bits,
            "entropy_bits": method.entropy_bits(encoded),
            "bpp": encoded.bits / pixels,
            **figures,
        }
        gathered = self._gathered[method.name]
        gathered.figures.append(figures)
        gathered.features += [features] if features else []
        if len(gathered.work) < self._options.timed:
            gathered.work.append((sample, setting, encoded))
        plain = method.name == method.series  # no bits a pixel of its own
        if self._options.bytes == EQUAL and plain and method.kind == "codec" and max_bytes:
            gathered.over += encoded.bits > 8 * max_bytes
        return sample, restored, figures

    def _shown(self, found: dict[str, dict[str, Any]]) -> list[str]:
        """Names of the rows whose pictures are shown: of a codec in many qualities, the one whose
        bits are nearest to those of the first tokenizer, else the middle one."""
        first = self._methods.first
        aim = found[first.name].get("bpp") if first else None
        series: dict[str, list[str]] = {}
        for method in self._methods.rows:
            if "bpp" in found[method.name]:
                series.setdefault(method.series, []).append(method.name)
        names = []
        for rows in series.values():
            nearest = rows[len(rows) // 2]
            if aim is not None:
                nearest = min(rows, key=lambda name: abs(found[name]["bpp"] - aim))
            names.append(nearest)
        return names

    def result(self, networks: Networks) -> dict[str, Any]:
        """As `Comparison` has it."""
        made = [m for m in self._methods.rows if self._gathered[m.name].figures]
        left_out = list(self._methods.left_out)
        left_out += [
            {"name": m.name, "reason": self._gathered[m.name].reason}
            for m in self._methods.rows
            if m not in made
        ]
        if not made:
            raise ViqError(f"nothing could be compared: {left_out[0]['reason']}")
        first = self._methods.first
        return {
            "rows": self._rows(made),
            "left_out": left_out,
            "images": self.images,
            "failed": self.failed,
            "text": self._originals.summary(),
            "settings": {
                **asdict(self._options),
                "bytes_of": first.name if first and self._options.bytes == EQUAL else None,
                "perceptual": networks.shown,
                "missing": networks.missing,
                "pillow": PIL.__version__,
                "viq": viq.__version__,
            },
            "machine": machine(),
        }

    def _rows(self, made: Sequence[Method]) -> list[dict[str, Any]]:
        options = self._options
        works = {m.name: self._gathered[m.name].work for m in made}
        spent = seconds(made, works, options.repeats) if options.repeats else {}
        rows = []
        for method in made:
            gathered = self._gathered[method.name]
            sizes = {tuple(each["size"]) for each in gathered.figures}
            peak = None
            if options.memory:
                peak = memory(method, gathered.work, options.device, options.tile)
            rows.append(
                {
                    "name": method.name,
                    "kind": method.kind,
                    "series": method.series,
                    "licence": method.licence,
                    "note": method.note,
                    "images": len(gathered.figures),
                    "over": gathered.over,
                    "size": list(sizes.pop()) if len(sizes) == 1 else None,
                    **totals(gathered.figures, gathered.features),
                    **spent.get(method.name, {"encode_s": None, "decode_s": None}),
                    "peak_mib": peak,
                }
            )
        return rows
