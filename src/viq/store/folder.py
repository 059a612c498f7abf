"""A store: a folder of Parquet files ("shards") and an index that was written last.

```
codes/
  part-00000.parquet    rows in the order of the inputs (store.rows)
  part-00001.parquet
  _entropy-*.safetensors  the entropy model, if the codes are compressed
  _failures.jsonl       inputs that gave no codes: key, reason; absent if there are none
  _job.json             what the store is made with: model, options, columns
  _index.json           the same, and every shard with rows, bytes and checksum; written last
  .huggingface.yaml     which files are samples, for `datasets.load_dataset` and the hub
```

Names that begin with an underscore or a dot are passed over by readers of Parquet folders, so these
open the folder as one table; a README.md would not be. A folder without index is unfinished. One
that holds neither `_index.json` nor `_job.json` but files of codes, as other programs write them,
is read as a store all the same: its index is made of what the files say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from viq.core.codes import Codes
from viq.core.files import read_bytes
from viq.core.types import CODES_PER_PATCH, FLOAT32, MAX_PATCHES, CodesError, ViqError
from viq.core.untrusted import (
    INDEX_BYTES,
    below,
    fingerprint,
    parse_json,
    printable,
    sha256,
    whole_number,
)
from viq.store.rows import CodeRow, CodesReader, StoreInfo

FORMAT = 1
PARQUET, SINGLE = ".parquet", ".viq"  # suffixes of files of codes, of many images and of one
_SINGLE_BYTES = 64 + 2 * CODES_PER_PATCH * MAX_PATCHES  # of a .viq file, at most
INDEX, JOB, LEDGER = "_index.json", "_job.json", "_failures.jsonl"
CARD = ".huggingface.yaml"  # read by `datasets`, which else takes the JSON files for the samples
CARD_TEXT = b"""configs:
- config_name: default
  data_files: "part-*.parquet"
"""
_MAX_FILES = 1 << 20  # of a folder that other programs wrote


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a store, as the index lists it.

    Attributes:
        inputs: the half-open range of inputs it was made of, failed ones included.
        sha256: of the file, hex.
    """

    name: str
    rows: int
    inputs: tuple[int, int]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `_index.json` holds; without shards and totals, what `_job.json` holds.

    Attributes:
        options: of encoding, by name; only those that change the codes or the shards.
        columns: Arrow type of every column that rides along, by name.
        inputs: how many the store is made of.
        keys: digest of their keys, in order.
        totals: rows, images, pixels, codes, failures, bytes of the whole store.
    """

    info: StoreInfo
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    inputs: int = 0
    keys: str = ""
    shards: tuple[Shard, ...] = ()
    totals: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Deterministic: equal stores have equal bytes."""
        values = asdict(self)
        values = {"format": FORMAT, **values.pop("info"), **values}
        if self.info.dtype == FLOAT32:  # as it was written before there were others
            del values["dtype"]
        if not self.totals:
            del values["shards"], values["totals"]
        return (json.dumps(values, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Index:
        """Read what `to_json` wrote.

        Raises:
            CodesError: of another format, or damaged; names `where`.
        """
        try:
            values = parse_json(data, where)
            if not isinstance(values, dict):
                raise CodesError("is no object")
            if values.pop("format") != FORMAT:
                raise _NewerError(f"{where}: of a newer format; update viq")
            return _index_of(values)
        except _NewerError:
            raise
        except (ViqError, KeyError, TypeError, AttributeError, ValueError) as error:
            reason = str(error).removeprefix(f"{where}: ")
            if not isinstance(error, ViqError):
                reason = f"{type(error).__name__}: {printable(reason, 80)}"
            raise CodesError(f"{where}: damaged ({reason}); mend with viq store index") from None


class _NewerError(CodesError):
    pass


def _index_of(values: dict[str, Any]) -> Index:
    """What an index says, each value checked: it may come from anybody."""
    about = {name: values.pop(name) for name in ("model", "fingerprint", "levels")}
    about |= {"entropy": values.pop("entropy", ""), "dtype": _dtype(values)}
    info = StoreInfo.checked(about)
    index = Index(
        info=info,
        options={_text(k, "options"): _scalar(v, k) for k, v in values.pop("options", {}).items()},
        columns={_text(k, "columns"): _text(v, k) for k, v in values.pop("columns", {}).items()},
        inputs=whole_number(values.pop("inputs", 0), "inputs"),
        keys=fingerprint(values.pop("keys", ""), "keys"),
        shards=tuple(_shards(values.pop("shards", []))),
        totals={
            _text(k, "totals"): whole_number(v, k) for k, v in values.pop("totals", {}).items()
        },
    )
    if values:
        raise CodesError(f"unknown {printable(next(iter(values)), 80)}")
    if index.shards and index.shards[-1].inputs[1] != index.inputs:
        raise CodesError(f"the shards end at input {index.shards[-1].inputs[1]} of {index.inputs}")
    rows = sum(shard.rows for shard in index.shards)
    if index.totals and index.totals.get("rows", rows) != rows:
        raise CodesError(f"{index.totals['rows']} rows, but its shards have {rows}")
    return index


def _dtype(values: dict[str, Any]) -> Any:
    """Of the model; before it had a name of its own it stood among the options, if anywhere."""
    options = values.get("options", {})
    return values.pop("dtype", options.get("dtype", FLOAT32))


def _shards(values: Any) -> Iterator[Shard]:
    """The shards of an index: numbered in order, and of neighbouring inputs."""
    first = 0
    for number, shard in enumerate(values):
        start, stop = (whole_number(place, "inputs") for place in shard["inputs"])
        if shard.keys() != _SHARD_FIELDS or shard["name"] != shard_name(number):
            raise CodesError(
                f"shard {number} is {printable(str(shard.get('name')), 80)!r}, not "
                f"{shard_name(number)}"
            )
        if start != first or stop < start:
            raise CodesError(f"shard {number} is of inputs {start} to {stop}, not from {first} on")
        yield Shard(
            name=shard["name"],
            rows=whole_number(shard["rows"], "rows"),
            inputs=(start, stop),
            bytes=whole_number(shard["bytes"], "bytes"),
            sha256=sha256(shard["sha256"], "sha256"),
        )
        first = stop


_SHARD_FIELDS = {"name", "rows", "inputs", "bytes", "sha256"}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise CodesError(f"{what} is no text")
    return value


def _scalar(value: Any, what: str) -> Any:
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise CodesError(f"{what} is neither number nor text")
    return value


class Store:
    """Codes to read: a finished store, one Parquet file, or a folder of them of other programs.

    Attributes:
        info: the tokenizer that made the codes.
        index: all that the index says.
        shards: the files, in order.

    Raises:
        CodesError: no store, unfinished, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        is_file = self.path.is_file() or (self.path.suffix == PARQUET and not self.path.is_dir())
        if is_file:
            self.index = _index_of_files([self.path], self.path.parent)
        else:
            files = files_of_others(self.path)
            self.index = _index_of_files(files, self.path) if files else read_index(self.path)
        self.info, self.shards = self.index.info, self.index.shards

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def file(self, shard: Shard) -> Path:
        """Where the shard is. Raises UntrustedError for a link that leads out of the store."""
        return below(self.path, shard.name, str(self.path)) if self.path.is_dir() else self.path

    def reader(self, shard: Shard, *, checked: bool = True) -> CodesReader:
        """Open one shard; `checked` as `CodesReader` takes it.

        Raises:
            CodesError: it is missing, damaged, made by another tokenizer than the index says, or
                has another number of rows.
        """
        reader = CodesReader(self.file(shard), checked=checked)
        if reader.info != self.info:
            raise CodesError(
                f"{reader.path}: made by {reader.info.fingerprint}, but its store by "
                f"{self.info.fingerprint}: the file belongs to another store"
            )
        if len(reader) != shard.rows:
            raise CodesError(
                f"{reader.path}: {len(reader)} rows, but the index says {shard.rows}: the file was "
                "replaced; encode again, or write a new index with viq store index"
            )
        return reader

    def __iter__(self) -> Iterator[tuple[str, Codes]]:
        for shard in self.shards:
            yield from self.reader(shard)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[CodeRow]:
        """All rows in order, as `CodesReader.rows` gives them."""
        for shard in self.shards:
            yield from self.reader(shard).rows(columns)


def read_index(folder: Path) -> Index:
    """The index of a finished store.

    Raises:
        CodesError: the folder is no store, unfinished, or its index is damaged.
    """
    data = _read(folder, INDEX)
    if data is not None:
        return Index.from_json(data, str(folder / INDEX))
    if (folder / JOB).exists():
        raise CodesError(f"{folder}: unfinished; run the same viq encode again to finish it")
    what = "holds no store of codes" if folder.exists() else "does not exist"
    raise CodesError(f"{folder}: {what}; write one with viq encode -o {folder}")


def read_begun(folder: Path) -> Index | None:
    """What the store in `folder` is made with; None if none was begun there.

    Raises:
        CodesError: its `_job.json` is damaged.
    """
    data = _read(folder, JOB)
    return None if data is None else Index.from_json(data, str(folder / JOB))


def read_single(path: Path) -> Codes:
    """The codes of a .viq file.

    Raises:
        CodesError: it cannot be read, is no regular file, or as `Codes.from_bytes`; names it.
    """
    try:
        return Codes.from_bytes(read_bytes(path, _SINGLE_BYTES))
    except OSError as error:
        raise CodesError(f"{path}: cannot be read ({error.strerror})") from None
    except ViqError as error:
        raise CodesError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _read(folder: Path, name: str) -> bytes | None:
    """A JSON file of a store, or None."""
    path = below(folder, name, str(folder))
    try:
        return read_bytes(path, INDEX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CodesError(f"{path}: cannot be read ({error.strerror})") from None


def _index_of_files(paths: Sequence[Path], folder: Path) -> Index:
    """The index of Parquet files below a folder, of what they say themselves.

    Raises:
        CodesError: one is no file of codes, or was made by another tokenizer than the first.
    """
    shards, columns, first, info = list[Shard](), dict[str, str](), 0, None
    for path in paths:
        with CodesReader(path) as reader:
            info = info or reader.info
            if reader.info != info:
                raise CodesError(
                    f"{path}: made by {reader.info.fingerprint}, but {paths[0]} by "
                    f"{info.fingerprint}: keep them in folders of their own"
                )
            columns |= {f.name: str(f.type) for f in reader.extras.fields}
            shards.append(
                Shard(
                    name=path.relative_to(folder).as_posix(),
                    rows=len(reader),
                    inputs=(first, first + len(reader)),
                    bytes=path.stat().st_size,
                    sha256="",
                )
            )
            first += len(reader)
    assert info is not None, "asked for no files"
    return Index(info=info, columns=columns, inputs=first, shards=tuple(shards))


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, finished or not, or holds files of codes of other programs."""
    if (folder / INDEX).exists() or (folder / JOB).exists():
        return True
    try:
        return any(CodesReader(path).info for path in files_of_others(folder)[:1])
    except ViqError:
        return False


def files_of_others(folder: Path) -> list[Path]:
    """The Parquet files below a folder that is no store of ours; none of hidden ones."""
    if (folder / INDEX).exists() or (folder / JOB).exists():
        return []
    found = (p for p in folder.rglob(f"*{PARQUET}") if not _is_hidden(p.relative_to(folder)))
    files = sorted(islice(found, _MAX_FILES + 1))
    if len(files) > _MAX_FILES:
        raise CodesError(f"{folder}: has more than {_MAX_FILES:,} files")
    return [below(folder, str(path.relative_to(folder)), str(folder)) for path in files]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
