"""Images to a file of codes, and a file of codes back to images: what the command line runs.

One bad input never stops a job: it is listed with its reason and the rest goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from viq.files import write_atomically, written_aside
from viq.image import ImageError, limit_pixels, open_image
from viq.models.tokenizer import VisualTokenizer
from viq.store.rows import CodesReader, CodesWriter, StoreInfo
from viq.types import Codes, CodesError, ViqError

_AHEAD = 4  # images decoded ahead of the model on a thread
PARQUET, SINGLE = ".parquet", ".viq"


@dataclass
class Report:
    """What a job did."""

    images: int = 0
    pixels: int = 0
    codes: int = 0
    seconds: float = 0.0
    bytes: int = 0  # two a code
    shrunk: int = 0  # images made smaller because of max_pixels
    tiled: int = 0  # images encoded in tiles
    failures: list[dict[str, str]] = field(default_factory=list)  # key, reason
    outputs: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with derived figures: megapixels, bytes of raw RGB over bytes of codes."""
        seconds = max(self.seconds, 1e-9)
        return {
            "images": self.images,
            "megapixels": round(self.pixels / 1e6, 3),
            "codes": self.codes,
            "bytes": self.bytes,
            "ratio": round(3 * self.pixels / self.bytes, 2) if self.bytes else None,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / seconds, 3),
            "megapixels_per_second": round(self.pixels / 1e6 / seconds, 3),
            "shrunk": self.shrunk,
            "tiled": self.tiled,
            "failures": self.failures,
            "outputs": self.outputs,
        }


def encode_files(
    tokenizer: VisualTokenizer,
    paths: Sequence[Path],
    out: Path,
    *,
    tile: int | None = None,
    max_pixels: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Report:
    """Encode image files into one Parquet file, or one image into a .viq file.

    Failed inputs are also written to `<out without suffix>.failures.jsonl`. If every input
    fails, no file of codes is written.

    Args:
        out: NAME.parquet, or NAME.viq for a single image.
        progress: called with the pixels of each image that is done, 0 for a failed one.

    Raises:
        ViqError: `out` cannot be written: wrong suffix, exists, several images into one .viq.
    """
    _check_out(out, len(paths), overwrite)
    report, start = Report(), time.perf_counter()
    info = StoreInfo(
        model=tokenizer.config.name,
        fingerprint=tokenizer.fingerprint,
        levels=tokenizer.levels,
    )
    encoded = _encoded(tokenizer, paths, tile, max_pixels, report, progress)
    first = next(encoded, None)
    if first is not None:
        if out.suffix == SINGLE:
            write_atomically(out, first[1].to_bytes())
        else:
            with CodesWriter(out, info) as writer:
                writer.add(*first)
                for key, codes in encoded:
                    writer.add(key, codes)
        report.outputs.append(str(out))
    report.seconds = time.perf_counter() - start
    write_failures(report, out)
    return report


def write_failures(report: Report, out: Path) -> None:
    """List failed inputs beside `out`; a list of an earlier run is removed."""
    path = out.with_name(f"{out.stem}.failures.jsonl")
    if report.failures:
        lines = "".join(json.dumps(failure) + "\n" for failure in report.failures)
        write_atomically(path, lines.encode())
        report.outputs.append(str(path))
    else:
        path.unlink(missing_ok=True)


def _check_out(out: Path, count: int, overwrite: bool) -> None:
    if out.suffix not in (PARQUET, SINGLE):
        raise ViqError(f"-o {out}: give NAME{PARQUET}, or NAME{SINGLE} for a single image")
    if out.suffix == SINGLE and count != 1:
        raise ViqError(f"-o {out}: holds one image, got {count}: write NAME{PARQUET} instead")
    if out.exists() and not overwrite:
        raise ViqError(f"-o {out}: exists; give another name, or --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):  # know now, not after an hour of encoding
            pass
    except OSError as error:
        raise ViqError(
            f"-o {out}: cannot be written ({error.strerror}); choose another place"
        ) from None


def _encoded(
    tokenizer: VisualTokenizer,
    paths: Sequence[Path],
    tile: int | None,
    max_pixels: int | None,
    report: Report,
    progress: Callable[[int], None],
) -> Iterator[tuple[str, Codes]]:
    """(key, codes) of every image that can be read; counts, and notes those that cannot."""

    def load(path: Path) -> tuple[Image.Image, bool]:
        image = open_image(path)
        small = limit_pixels(image, max_pixels)
        return small, small is not image

    for path, future in _prefetched(paths, load):
        try:
            image, shrunk = future.result()
        except ImageError as error:
            report.failures.append({"key": path.as_posix(), "reason": str(error)})
            progress(0)
            continue
        (codes,) = tokenizer.encode(image, tile=tile)
        report.images += 1
        report.pixels += image.width * image.height
        report.codes += codes.ids.size
        report.bytes += codes.nbytes
        report.shrunk += shrunk
        report.tiled += codes.tile > 0
        yield path.as_posix(), codes
        progress(image.width * image.height)


def _prefetched(
    paths: Sequence[Path], load: Callable[[Path], Any]
) -> Iterator[tuple[Path, Future[Any]]]:
    """Run `load` a few paths ahead on a thread, in order."""
    with ThreadPoolExecutor(1) as pool:
        queue = [(path, pool.submit(load, path)) for path in paths[:_AHEAD]]
        for following in range(_AHEAD, len(paths) + _AHEAD):
            if not queue:
                return
            yield queue.pop(0)
            if following < len(paths):
                queue.append((paths[following], pool.submit(load, paths[following])))


def read_codes(paths: Iterable[Path]) -> Iterator[tuple[str, Codes, str]]:
    """(key, codes, name of the model or "") of .parquet and .viq files.

    Raises:
        CodesError: a file is no file of codes, or damaged; names it.
    """
    for path in paths:
        if path.suffix == SINGLE:
            try:
                yield path.stem, Codes.from_bytes(path.read_bytes()), ""
            except CodesError as error:
                raise CodesError(f"{path}: {error}") from None
            except OSError as error:
                raise CodesError(f"{path}: cannot be read ({error.strerror})") from None
        else:
            reader = CodesReader(path)
            for key, codes in reader:
                yield key, codes, reader.info.model


def decode_files(
    tokenizer: VisualTokenizer,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Report:
    """Decode .parquet or .viq files to PNG files in a folder, named after the keys.

    Folders that all keys have in common are left out.

    Args:
        force: decode codes of another tokenizer all the same.

    Raises:
        CodesError: a file is damaged, or was made by another tokenizer and not `force`.
    """
    report, start, taken = Report(), time.perf_counter(), set()
    common = _common_folder(
        key
        for path in paths
        for key in ([path.stem] if path.suffix == SINGLE else CodesReader(path).keys())
    )
    for key, codes, model in read_codes(paths):
        if force:
            codes = Codes(codes.ids, codes.size, codes.tile)
        else:
            try:
                tokenizer.require(codes.fingerprint)
            except CodesError as error:
                made_by = f" (its model is called {model})" if model else ""
                raise CodesError(f"{key}: {error}{made_by}; or --force") from None
        (image,) = tokenizer.decode(codes)
        path = _png_path(out, key.removeprefix(common), taken)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            image.save(aside, format="PNG")
        report.images += 1
        report.pixels += image.width * image.height
        report.codes += codes.ids.size
        report.bytes += codes.nbytes
        report.outputs.append(str(path))
        progress(image.width * image.height)
    report.seconds = time.perf_counter() - start
    return report


def _common_folder(keys: Iterable[str]) -> str:
    """The longest folder, with its slash, that all keys begin with; "" if none."""
    prefix = os.path.commonprefix(list(keys))
    return prefix[: prefix.rfind("/") + 1]


def _png_path(out: Path, key: str, taken: set[Path]) -> Path:
    """A path inside `out`, whatever the key holds; a.jpg and a.png get different names."""
    parts = [p for p in PurePath(key).parts if p not in ("..", ".", "/", PurePath(key).anchor)]
    name = Path(*parts) if parts else Path("image")
    path = out / name.with_suffix(".png")
    if path in taken:
        path = out / name.with_name(name.name + ".png")
    number = 2
    while path in taken:
        path = out / name.with_name(f"{name.name}-{number}.png")
        number += 1
    taken.add(path)
    return path
