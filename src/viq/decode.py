"""Files of codes back to images: what `viq decode` runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from viq.files import written_aside
from viq.models.tokenizer import VisualTokenizer
from viq.report import Report
from viq.store.folder import SINGLE, Store
from viq.types import Codes, CodesError


def read_codes(paths: Iterable[Path]) -> Iterator[tuple[str, Codes, str]]:
    """(key, codes, name of the model or "") of stores, .parquet and .viq files.

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
            store = Store(path)
            for key, codes in store:
                yield key, codes, store.info.model


def count_images(paths: Iterable[Path]) -> int:
    """How many rows `read_codes` goes over."""
    return sum(1 if path.suffix == SINGLE else len(Store(path)) for path in paths)


def decode_files(
    tokenizer: VisualTokenizer,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Report:
    """Decode stores, .parquet or .viq files to PNG files in a folder, named after the keys.

    Folders that all keys have in common are left out.

    Args:
        force: decode codes of another tokenizer all the same.

    Raises:
        CodesError: a file is damaged, or was made by another tokenizer and not `force`.
    """
    report, start, taken = Report(), time.perf_counter(), set()
    common = _common_folder(key for path in paths for key in _keys(path))
    for key, codes, model in read_codes(paths):
        if force:
            codes = Codes(codes.ids, codes.size, codes.tile, dtype=codes.dtype)
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
        report.count(codes)
        report.outputs.append(str(path))
        progress(image.width * image.height)
    report.seconds = time.perf_counter() - start
    return report


def _keys(path: Path) -> Iterator[str]:
    """The keys that `read_codes` gives, without reading codes."""
    if path.suffix == SINGLE:
        yield path.stem
        return
    store = Store(path)
    for shard in store.shards:
        yield from store.reader(shard).keys()


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
