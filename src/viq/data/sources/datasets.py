"""Data sets of Hugging Face `datasets`: in memory, saved in a folder, or on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from viq.core.errors import require
from viq.data.sources.access import Access, Names
from viq.data.sources.base import Row, Source, SourceError, Wanted, because, place
from viq.data.sources.cells import cell_of, cells_of, readable
from viq.data.sources.tables import Columns

_KEYS_AT_ONCE = 4096


class DatasetSource(Source):
    """A `datasets.Dataset`. Options as for `ParquetSource`; `name` begins keys that are numbers.

    Args:
        cached: whether images that lie where `datasets` keeps what it has fetched may be named by
            their absolute paths. Those of a data set of the hub may be named by their place there.
    """

    def __init__(
        self,
        dataset: Any,
        name: str = "dataset",
        *,
        root: Path | None = None,
        image_column: str | Sequence[str] | None = None,
        key_column: str | None = None,
        wanted: Wanted | None = None,
        access: Access | None = None,
        cached: bool = False,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
            raise SourceError(
                f"{name}: a {type(dataset).__name__} has no rows by number; pass a"
                " datasets.Dataset, loaded without streaming"
            )
        names = dataset.column_names
        self._columns = Columns.choose(names, image_column, key_column, place(name), wanted)
        chosen = list(self._columns.names)
        if chosen and chosen != names:
            dataset = dataset.select_columns(chosen)
        self._rows = dataset.with_format("arrow")  # as stored: images stay encoded
        self._name = name
        hub = name.removeprefix("hf:").partition(":")[0] if name.startswith("hf:") else ""
        self._within = Names(
            root or Path(),
            access or Access(),
            _fetched() if cached else (),
            f"hf://datasets/{hub}" if hub else "",
        )

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> Iterator[str]:
        columns = self._columns
        if columns.key is None:
            yield from (columns.key_of(None, self._name, number) for number in range(len(self)))
            return
        keys = self._rows.select_columns([columns.key])
        for start in range(0, len(self), _KEYS_AT_ONCE):
            end = min(start + _KEYS_AT_ONCE, len(self))
            try:
                values = cells_of(readable(keys[start:end]).column(0))
            except Exception:  # damaged; each of these rows will say so
                values = [None] * (end - start)
            for number, value in enumerate(values, start):
                yield columns.key_of(value, self._name, number)

    def key(self, index: int) -> str:
        value = None
        if self._columns.key:
            keys = self._rows.select_columns([self._columns.key])
            try:
                value = cell_of(readable(keys[index : index + 1]).column(0)[0])
            except Exception:
                pass
        return self._columns.key_of(value, self._name, index)

    def where(self, index: int) -> str:
        return place(self._name, index)

    def leftovers(self) -> dict[str, int]:
        return dict(self._columns.leftovers())

    def _row(self, index: int) -> Row:
        table = readable(self._rows[index : index + 1])
        return self._columns.row(table, self._name, index, self._within)


def _fetched() -> tuple[Path, ...]:
    """The folders in which `datasets` and the hub's library keep what they have fetched."""
    try:
        from datasets import config
        from huggingface_hub import constants
    except ImportError:
        return ()
    return tuple(
        Path(place)
        for place in (
            config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE
        )
    )  # fmt: skip


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    if (folder / "dataset_dict.json").exists():
        return True
    return (folder / "dataset_info.json").exists() and (folder / "state.json").exists()


def load_saved(folder: Path, split: str | None) -> Any:
    """The data set in a folder of `save_to_disk`. Raises `SourceError`."""
    datasets = _datasets(str(folder))
    try:
        loaded = datasets.load_from_disk(os.fspath(folder))
    except Exception as error:  # of many types
        raise SourceError(
            f"{folder}: cannot be read as a saved data set ({because(error)}); write it again"
        ) from error
    return one_split(loaded, split, str(folder))


def load_hub(name: str, split: str | None) -> Any:
    """The data set "owner/name" or "owner/name:subset" of the hub. Raises `SourceError`."""
    datasets = _datasets(f"hf:{name}")
    repository, _, subset = name.partition(":")
    try:
        # The name is the user's, and what is fetched is data: this release runs no code of it.
        loaded = datasets.load_dataset(repository, subset or None)  # nosec B615
    except Exception as error:  # of many types
        raise SourceError(
            f"hf:{name}: cannot be loaded ({because(error)}); check the name and the connection"
        ) from error
    return one_split(loaded, split, f"hf:{name}")


def one_split(loaded: Any, split: str | None, where: str) -> Any:
    """`split` of a dict of data sets, which may be None if there is but one."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise SourceError(f"{where}: has no splits; leave out split={split}")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        given = "give split" if split is None else f"has no split {split}"
        raise SourceError(f"{where}: {given}, one of {', '.join(loaded)}")
    return loaded[split]


def _datasets(where: str) -> Any:
    with require("datasets", "data", where, SourceError):
        import datasets
    return datasets
