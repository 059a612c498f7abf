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

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath

from viq.core.codes import Codes
from viq.core.files import read_bytes
from viq.core.remote import RemoteFolder, location, suffix_of
from viq.core.types import CODES_PER_PATCH, MAX_PATCHES, CodesError, ViqError
from viq.core.untrusted import (
    INDEX_BYTES,
    below,
)
from viq.store.cache_folder import CacheFolder
from viq.store.fetched import PARQUET as PARQUET
from viq.store.fetched import FetchedFiles
from viq.store.index import CARD as CARD
from viq.store.index import CARD_TEXT as CARD_TEXT
from viq.store.index import INDEX, JOB, Index, Shard
from viq.store.index import LEDGER as LEDGER
from viq.store.index import shard_name as shard_name
from viq.store.rows import CodeRow, CodesReader
from viq.store.schema import StoreInfo as StoreInfo

SINGLE = ".viq"  # suffix of a file of the codes of one image
_SINGLE_BYTES = 64 + 2 * CODES_PER_PATCH * MAX_PATCHES  # of a .viq file, at most
_MAX_FILES = 1 << 20  # of a folder that other programs wrote


class Store:
    """Codes to read: a finished store, one Parquet file, or a folder of them of other programs.

    Each may lie behind a URL; files are then copied to this machine one after another.

    Args:
        cache: folder of the copies; None for that of the user.

    Attributes:
        path: where it is, a URL as it was given.
        info: the tokenizer that made the codes.
        index: all that the index says, or, if there is none, the files themselves.
        has_index: whether there is one.
        shards: the files, in order.

    Raises:
        CodesError: no store, unfinished, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], cache: CacheFolder | None = None) -> None:
        self.path = location(path)
        self._fetched: FetchedFiles | None = None
        if isinstance(self.path, Path):
            self.index, self.has_index = _index_here(self.path)
        else:
            is_file = suffix_of(self.path) == PARQUET
            url, _, name = self.path.rpartition("/") if is_file else (self.path, "", "")
            self._fetched = FetchedFiles(RemoteFolder(url), cache)
            self.index, self.has_index = _index_there(self._fetched, name)
        self.info, self.shards = self.index.info, self.index.shards

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def file(self, shard: Shard) -> Path:
        """Where the shard is, or its copy. It must have the checksum that the index lists.

        Raises:
            UntrustedError: a link that leads out of the store.
            CodesError: it cannot be fetched, or has more bytes than the index says.
        """
        if self._fetched is not None:
            self._fetched.entropy_model(self.info.entropy)
            return self._fetched.file(shard.name, shard.bytes)
        path = Path(self.path)
        return below(path, shard.name, str(path)) if path.is_dir() else path

    def unlisted(self) -> list[str]:
        """Parquet files beside those of the index, which readers of the folder see."""
        listed = {shard.name for shard in self.shards}
        if self._fetched is not None:
            is_single = self.path != self._fetched.remote.url
            found = [] if is_single else list(self._fetched.remote.sizes())
        else:
            found = [path.name for path in Path(self.path).glob(f"*{PARQUET}")]
        return sorted(n for n in found if n.endswith(PARQUET) and n not in listed)

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


def _index_here(path: Path) -> tuple[Index, bool]:
    """The index of a store, or of files, and whether it is one."""
    if path.is_file() or (path.suffix == PARQUET and not path.is_dir()):
        return _index_of_files([(path.name, path)], str(path.parent)), False
    if files := files_of_others(path):
        named = [(file.relative_to(path).as_posix(), file) for file in files]
        return _index_of_files(named, str(path)), False
    return read_index(path), True


def _index_there(files: FetchedFiles, single: str) -> tuple[Index, bool]:
    """As `_index_here`, of a remote store, or of the file `single` in its folder."""
    remote = files.remote
    if not single:
        data = remote.read(INDEX, INDEX_BYTES)
        if data is not None:
            return Index.from_json(data, f"{remote.url}/{INDEX}"), True
        if remote.size(JOB) is not None:
            raise _unfinished(remote.url)
    names = [single] if single else [n for n in sorted(_listed(remote)) if _is_table(n)]
    if not names:
        raise CodesError(f"{remote.url}: holds no finished store of codes; check the URL")
    return _index_of_files(((name, files.file(name)) for name in names), remote.url), False


def _listed(remote: RemoteFolder) -> list[str]:
    try:
        return list(islice(remote.sizes(deep=True), _MAX_FILES))
    except CodesError:  # a server that lists nothing, as of plain http
        return []


def _is_table(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == PARQUET and ".." not in path.parts and not _is_hidden(path)


def read_index(folder: Path) -> Index:
    """The index of a finished store.

    Raises:
        CodesError: the folder is no store, unfinished, or its index is damaged.
    """
    data = _read(folder, INDEX)
    if data is not None:
        return Index.from_json(data, str(folder / INDEX))
    if (folder / JOB).exists():
        raise _unfinished(str(folder))
    what = "holds no store of codes" if folder.exists() else "does not exist"
    raise CodesError(f"{folder}: {what}; write one with viq encode -o {folder}")


def _unfinished(where: str) -> CodesError:
    return CodesError(f"{where}: unfinished; run the same viq encode again to finish it")


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


def _index_of_files(files: Iterable[tuple[str, Path]], where: str) -> Index:
    """The index of Parquet files, by their names, of what they say themselves.

    Raises:
        CodesError: one is no file of codes, or was made by another tokenizer than the first.
    """
    shards, columns, first, info = list[Shard](), dict[str, str](), 0, None
    for name, path in files:
        with CodesReader(path) as reader:
            info = info or reader.info
            if reader.info != info:
                raise CodesError(
                    f"{where}: {name} was made by {reader.info.fingerprint}, but "
                    f"{shards[0].name} by {info.fingerprint}: keep them in folders of their own"
                )
            columns |= {f.name: str(f.type) for f in reader.extras.fields}
            last, size = first + len(reader), path.stat().st_size
            shards.append(
                Shard(name=name, rows=last - first, inputs=(first, last), bytes=size, sha256="")
            )
            first = last
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


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
