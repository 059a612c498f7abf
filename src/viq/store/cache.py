"""Random access to the shards of a store, here or remote, through a cache of unpacked shards.

Parquet is made to be read in groups of rows: to see one image, its whole group is decompressed.
So a shard that is read at random is written once as an uncompressed Arrow file into a cache folder
of bounded size, and mapped from there by all processes of the machine. Shards of remote stores come
the same way. docs/codes.md has what that gains.

Processes share the cache without locks: files are named after what they hold and are whole or
absent, two processes that unpack a shard write the same, and one that misses it unpacks it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from viq.compress import beside
from viq.files import sha256_of, written_aside
from viq.store.folder import INDEX, PARQUET, Index, Shard, Store
from viq.store.rows import CodesReader
from viq.store.views import ShardView
from viq.types import CodesError, ViqError

_LAYOUT = 1  # of unpacked files; part of their names
_ABANDONED = 3600  # seconds after which nobody writes a half-written file any more


class ShardCache:
    """The shards of a store, unpacked and mapped when they are asked for.

    Args:
        path: a store, a Parquet file, or the URL of one, as fsspec takes it.
        columns: of the extras; None for all.
        folder: for unpacked shards, shared by all stores and processes.
        max_bytes: what the folder may hold; what is in use stays, even if it is more.

    Attributes:
        index: what the store says of itself.
        samples: how many each shard has.

    Raises:
        CodesError: no finished store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str] | None,
        folder: Path,
        max_bytes: int,
    ) -> None:
        self._name, self._columns = str(path), columns
        self._folder, self._max_bytes = folder, max_bytes
        self._files: _Files = (
            _Remote(self._name, folder) if "://" in self._name else _Local(Path(path))
        )
        self.index = self._files.index
        self._views: OrderedDict[int, ShardView] = OrderedDict()
        self.samples = self._count()

    def __getitem__(self, number: int) -> ShardView:
        """The view of a shard.

        Raises:
            CodesError: the shard is missing or damaged, or lacks a column.
        """
        view = self._views.get(number)
        if view is None:
            view = self._views[number] = self._map(self.index.shards[number])
            while len(self._views) > 1 and self._mapped() > self._max_bytes:
                self._views.popitem(last=False)
        self._views.move_to_end(number)
        return view

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which map files themselves."""
        return self.__dict__ | {"_views": OrderedDict()}

    def keys(self, number: int) -> list[str]:
        """Keys of the samples of a shard, without unpacking it."""
        with self._reader(self.index.shards[number]) as reader:
            pairs = zip(reader.keys(), reader.begins_sample(), strict=True)
            return [key for key, begins in pairs if begins]

    def _count(self) -> list[int]:
        totals = self.index.totals
        if totals and totals["rows"] == self.index.inputs - totals["failures"]:
            return [shard.rows for shard in self.index.shards]  # every sample is one row
        counts = []
        for shard in self.index.shards:
            with self._reader(shard) as reader:
                counts.append(int(reader.begins_sample().sum()))
        return counts

    def _mapped(self) -> int:
        return sum(view.nbytes for view in self._views.values())

    def _map(self, shard: Shard) -> ShardView:
        import pyarrow as pa

        path = self._folder / f"{self._files.digest(shard)}-{_LAYOUT}.arrow"
        for again in (False, True):  # another process may remove the file at any moment
            if again or not path.exists():
                self._unpack(shard, path)
            with suppress(OSError, pa.ArrowException):
                os.utime(path)  # in use, so the last to be removed
                info = self.index.info
                return ShardView(path, info.fingerprint, self._columns, self._name, info.dtype)
        raise ViqError(f"{path}: cannot be mapped; give another folder as cache")

    @contextmanager
    def _reader(self, shard: Shard) -> Iterator[CodesReader]:
        with self._files.fetched(shard) as file, CodesReader(file) as reader:
            if reader.info != self.index.info or len(reader) != shard.rows:
                raise CodesError(
                    f"{self._name}: {shard.name} is not the file that the index lists; write a new "
                    "index with viq store index"
                )
            yield reader

    def _unpack(self, shard: Shard, path: Path) -> None:
        import pyarrow as pa

        with self._reader(shard) as reader, written_aside(path) as aside:
            schema = reader.plain_schema(reader.extras)
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
                for batch in reader.batches(reader.extras):
                    out.write_batch(batch)
            self._make_room(aside.stat().st_size)

    def _make_room(self, wanted: int) -> None:
        """Remove what was used longest ago until `wanted` bytes fit, and what was abandoned."""
        files = []
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):
                facts = file.stat()
                if file.suffix == ".arrow":
                    files.append((facts.st_mtime, facts.st_size, file))
                elif file.name.startswith(".") and time.time() - facts.st_mtime > _ABANDONED:
                    shutil.rmtree(file, ignore_errors=True)
                    file.unlink(missing_ok=True)
        total = wanted + sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._max_bytes:
                break
            file.unlink(missing_ok=True)  # who has mapped it keeps it
            total -= size


class _Files(Protocol):
    """Where the files of a store are."""

    index: Index

    def digest(self, shard: Shard) -> str:
        """What tells this file from all others."""
        ...

    def fetched(self, shard: Shard) -> Any:
        """Context manager: the file on this machine, for as long as the block runs."""
        ...


class _Local:
    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self.index = self._store.index

    def digest(self, shard: Shard) -> str:
        file = self._store.file(shard)
        try:
            facts = file.stat()
        except OSError as error:
            raise CodesError(f"{file}: {error.strerror}; encode again") from None
        return shard.sha256 or _digest(str(file.resolve()), facts.st_size, facts.st_mtime_ns)

    @contextmanager
    def fetched(self, shard: Shard) -> Iterator[Path]:
        yield self._store.file(shard)


class _Remote:
    """Behind a URL. Files are fetched into a temporary folder inside the cache."""

    def __init__(self, url: str, folder: Path) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ViqError(f"{url}: needs fsspec; pip install 'viq[data]'") from None
        self._url, self._folder = url, folder
        with self._reported(""):
            self._fs, root = url_to_fs(url)
        self._root = PurePosixPath(root)
        if url.endswith(PARQUET):
            self._root, self._single = self._root.parent, self._root.name
            with self._fetch([self._single]) as here:
                self.index = Store(here / self._single).index
        else:
            with self._reported(INDEX):
                data = self._fs.cat_file(str(self._root / INDEX))
            self.index = Index.from_json(data, f"{url}/{INDEX}")

    def digest(self, shard: Shard) -> str:
        if shard.sha256:
            return shard.sha256
        with self._reported(shard.name):
            return _digest(self._url, self._fs.ukey(str(self._root / shard.name)))

    @contextmanager
    def fetched(self, shard: Shard) -> Iterator[Path]:
        entropy = self.index.info.entropy
        with self._fetch([shard.name], [beside(entropy)] if entropy else []) as here:
            file = here / shard.name
            if shard.sha256 and sha256_of(file) != shard.sha256:
                raise CodesError(
                    f"{self._url}: {shard.name} does not have the checksum that the index lists: "
                    "it was damaged there or on the way"
                )
            yield file

    @contextmanager
    def _fetch(self, names: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Path]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".fetch-", dir=self._folder) as here:
            for name in names:
                with self._reported(name):
                    self._fs.get_file(str(self._root / name), str(Path(here, name)))
            for name in optional:
                with suppress(FileNotFoundError):
                    self._fs.get_file(str(self._root / name), str(Path(here, name)))
            yield Path(here)

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Every failure as one line; which library raises what, fsspec does not say."""
        try:
            yield
        except FileNotFoundError:
            raise CodesError(
                f"{self._url}: has no {name}; is it a finished store of codes?"
            ) from None
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CodesError(
                f"{self._url}: {name} cannot be fetched ({type(error).__name__}: {reason})"
            ) from None


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
