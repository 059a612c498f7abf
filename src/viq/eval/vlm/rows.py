"""The rows of a benchmark: of files here, or of the Hugging Face hub.

A folder of data may hold `TASK.parquet` files, or data sets as the hub has them, each in a folder
of its name: `ChartQA/data/test-00000-of-00001.parquet`, or what `save_to_disk` wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from viq.core.types import ViqError
from viq.data.sources.base import Row, Source, Wanted
from viq.data.sources.datasets import is_saved_dataset
from viq.data.sources.open import open_source
from viq.data.sources.tables import ParquetSource
from viq.eval.vlm.tasks.base import Task, text_of

_SPLIT_NAMES = ("train", "test", "val", "validation", "dev")
_TAIL = 64 * 2**10  # bytes of a file that tell it from others: its footer, with all statistics


@dataclass(frozen=True)
class Place:
    """Where the rows of a task are: files, or what `open_source` takes."""

    files: tuple[Path, ...] = ()
    spec: str = ""
    split: str | None = None


def find(task: Task, data: Path | None) -> Place:
    """The place of a task in a folder of data, or on the hub if there is none.

    Raises:
        ViqError: the folder has no such data.
    """
    if data is None:
        hub = task.hub
        spec = f"hf:{hub.repository}" + (f":{hub.config}" if hub.config else "")
        return Place(spec=spec, split=hub.split)
    if not data.is_dir():
        raise ViqError(f"--data {data}: is no folder; give one with TASK.parquet files")
    file = data / f"{task.name}.parquet"
    if file.is_file():
        return Place(files=(file,))
    for folder in _folders(task, data):
        if is_saved_dataset(folder):
            has_splits = (folder / "dataset_dict.json").exists()
            return Place(spec=str(folder), split=task.hub.split if has_splits else None)
        if files := _of_split(folder, task.hub.split):
            return Place(files=tuple(files))
    raise ViqError(
        f"{data}: has neither {task.name}.parquet nor Parquet files of the split "
        f"{task.hub.split} in a folder {task.hub.name}; fetch {task.hub.repository}"
    )


def open_rows(task: Task, place: Place, *, pictures: bool = True) -> Source:
    """The rows of a task in their order; a damaged one raises when it is read.

    Args:
        pictures: whether they are wanted too; without, nothing but text is read.

    Raises:
        SourceError: a column is missing, or the data cannot be read.
    """
    images = task.image_columns if pictures else ()
    columns = task.columns
    if not pictures:
        columns = tuple(name for name in columns if not re.fullmatch(r"image_\d", name))
    if place.files:
        return ParquetSource(
            place.files, image_column=images, key_column="", wanted=Wanted(columns=columns)
        )
    return open_source(
        place.spec, image_column=images, key_column="", split=place.split, columns=columns
    )


def identity(task: Task, place: Place) -> str:
    """16 hex digits that tell these rows from others.

    Of files, by their sizes and footers; of data sets, by their questions.
    """
    state = hashlib.sha256()
    for text in told_from_others(place.files) if place.files else _questions(task, place):
        state.update(len(text).to_bytes(8, "little") + text)
    return state.hexdigest()[:16]


def told_from_others(files: Sequence[Path]) -> Iterator[bytes]:
    """Of each file its size and last bytes: those of a Parquet file are its footer."""
    for file in files:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - _TAIL))
            yield str(size).encode()
            yield stream.read(_TAIL)


def _questions(task: Task, place: Place) -> Iterator[bytes]:
    source = open_rows(task, place, pictures=False)
    for number in range(len(source)):
        yield _question(source, number).encode(errors="surrogatepass")


def _question(source: Source, number: int) -> str:
    try:
        row: Row = source[number]
        return text_of(row, "question")
    except ViqError:  # it is told of when it is asked
        return ""


def _folders(task: Task, data: Path) -> Iterator[Path]:
    """Folders that may hold the data set, the likeliest first."""
    hub = task.hub
    places = [data / task.name, data / hub.name, data / hub.repository]
    places += [data] if data.name.lower() == hub.name.lower() else []
    for place in places:
        if hub.config and (place / hub.config).is_dir():
            yield place / hub.config
        if place.is_dir():
            yield place


def _of_split(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, by their names; all if no name says of which split it is."""
    found = sorted(
        path
        for path in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    names = {path: {*re.split(r"[^a-z]+", path.stem.lower())} for path in found}
    if not any(words & {*_SPLIT_NAMES} for words in names.values()):
        return found
    return [path for path, words in names.items() if split in words]
