"""A store: a folder of Parquet files ("shards") and an index that was written last.

```
codes/
  part-00000.parquet    rows in the order of the inputs (store.rows)
  part-00001.parquet
  _entropy-*.safetensors  the entropy model, if the codes are compressed
  _failures.jsonl       inputs that gave no codes: key, reason; absent if there are none
  _job.json             what the store is made with: model, options, columns
  _index.json           the same, and every shard with rows, bytes and checksum; written last
```

Names that begin with an underscore are passed over by readers of Parquet folders, so these open
the folder as one table. A folder without index is unfinished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viq.store.rows import CodeRow, CodesReader, StoreInfo
from viq.types import FLOAT32, Codes, CodesError

FORMAT = 1
PARQUET, SINGLE = ".parquet", ".viq"  # suffixes of files of codes, of many images and of one
INDEX, JOB, LEDGER = "_index.json", "_job.json", "_failures.jsonl"


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
            values = json.loads(data)
            if values.pop("format") != FORMAT:
                raise CodesError(f"{where}: of a newer format; update viq")
            info = StoreInfo(
                model=values.pop("model"),
                fingerprint=values.pop("fingerprint"),
                levels=tuple(values.pop("levels")),
                entropy=values.pop("entropy", ""),
                dtype=values.pop("dtype", values.get("options", {}).get("dtype", FLOAT32)),
            )
            shards = tuple(
                Shard(**{**shard, "inputs": tuple(shard["inputs"])})
                for shard in values.pop("shards", ())
            )
            return cls(info=info, shards=shards, **values)
        except CodesError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CodesError(
                f"{where}: damaged ({type(error).__name__}: {error}); mend with viq store index"
            ) from None


class Store:
    """Codes to read: a finished store, or one Parquet file, which is a store of one shard.

    Attributes:
        info: the tokenizer that made the codes.
        index: all that the index says.
        shards: the files, in order.

    Raises:
        CodesError: no store, unfinished, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        is_file = self.path.is_file() or self.path.suffix == PARQUET
        self.index = _index_of_file(self.path) if is_file else read_index(self.path)
        self.info, self.shards = self.index.info, self.index.shards

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def file(self, shard: Shard) -> Path:
        """Where the shard is."""
        return self.path / shard.name if self.path.is_dir() else self.path

    def reader(self, shard: Shard) -> CodesReader:
        """Open one shard.

        Raises:
            CodesError: it is missing, damaged, made by another tokenizer than the index says, or
                has another number of rows.
        """
        reader = CodesReader(self.file(shard))
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
    path = folder / INDEX
    try:
        return Index.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        pass
    if (folder / JOB).exists():
        raise CodesError(f"{folder}: unfinished; run the same viq encode again to finish it")
    what = "holds no store of codes" if folder.exists() else "does not exist"
    raise CodesError(f"{folder}: {what}; write one with viq encode -o {folder}")


def _index_of_file(path: Path) -> Index:
    with CodesReader(path) as reader:
        rows = len(reader)
        shard = Shard(
            name=path.name, rows=rows, inputs=(0, rows), bytes=path.stat().st_size, sha256=""
        )
        columns = {f.name: str(f.type) for f in reader.extras.fields}
        return Index(info=reader.info, columns=columns, inputs=rows, shards=(shard,))
