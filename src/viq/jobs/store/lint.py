"""Everything that can be wrong with a store, found in one pass: `viq store lint`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from viq.core.files import is_plain, sha256_of
from viq.core.remote import Location
from viq.core.types import PATCH_SIZE, ViqError
from viq.store.folder import INDEX, JOB, Shard, Store, shard_name
from viq.store.job import count_shards, read_job
from viq.store.rows import CodeRow, CodesReader

_LISTED = 1000  # problems in a report; all are counted


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where: a file, or a row of it."""

    where: str
    problem: str


def lint(path: Location, progress: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Read all of a store and report what is wrong with it.

    Checked are: the index, missing and unlisted shards, their sizes and checksums, the pages and
    columns of each, who made it, and of each row its grid, its codes, its order within its sample
    and whether its key was there before. A row that cannot be read ends the reading of its shard.

    Args:
        progress: called for each shard that is done.

    Returns:
        JSON-able; `problems` is 0 for a sound store.
    """
    found = _Findings()
    try:
        store = Store(path)
    except ViqError as error:
        for problem in [Problem(str(path), str(error)), *_unfinished(path)]:
            found.add(problem)
        return found.report(path, shards=0)
    for problem in _files(store):
        found.add(problem)
    seen: set[bytes] = set()
    for shard in store.shards:
        for item in _shard(store, shard, seen):
            found.add(item)
        progress()
    return found.report(path, shards=len(store.shards))


class _Findings:
    """Rows and problems; of these all are counted and the first are kept."""

    def __init__(self) -> None:
        self._rows = self._problems = 0
        self._listed: list[Problem] = []

    def add(self, item: Problem | CodeRow) -> None:
        if isinstance(item, CodeRow):
            self._rows += 1
            return
        self._problems += 1
        if self._problems <= _LISTED:
            self._listed.append(item)

    def report(self, path: Location, shards: int) -> dict[str, Any]:
        return {
            "store": str(path),
            "shards": shards,
            "rows": self._rows,
            "problems": self._problems,
            "listed": [vars(problem) for problem in self._listed],
        }


def _unfinished(path: Location) -> Iterator[Problem]:
    """The shards that an unfinished store here lacks."""
    if isinstance(path, str):
        return
    if not (path / JOB).exists() or (path / INDEX).exists():
        return
    try:
        count = count_shards(read_job(path))
    except ViqError as error:
        yield Problem(str(path / JOB), f"cannot be read ({error})")
        return
    for name in map(shard_name, range(count)):
        if not (path / name).exists():
            yield Problem(str(path / name), "missing")


def _files(store: Store) -> Iterator[Problem]:
    """Sizes and checksums against the index, and files that it does not list."""
    if not store.has_index:
        return
    for name in store.unlisted():
        where = f"{store.path}/{name}"
        yield Problem(where, "is not in the index; readers of the folder see its rows")
    for shard in store.shards:
        try:
            file = store.file(shard)
        except ViqError as error:
            yield Problem(f"{store.path}/{shard.name}", str(error))
            continue
        if not file.exists():
            yield Problem(str(file), "missing")
        elif not is_plain(file.resolve()):
            yield Problem(str(file), "is no regular file")
        elif file.stat().st_size != shard.bytes:
            yield Problem(str(file), f"{file.stat().st_size} bytes, the index says {shard.bytes}")
        elif shard.sha256 and sha256_of(file) != shard.sha256:
            yield Problem(str(file), "its checksum is not that of the index")


def _shard(store: Store, shard: Shard, seen: set[bytes]) -> Iterator[Problem | CodeRow]:
    """The rows of a shard, and before each what is wrong with it."""
    try:
        file = store.file(shard)
    except ViqError:
        return  # reported already
    if not is_plain(file.resolve()):
        return  # the same
    last: CodeRow | None = None
    try:
        with store.reader(shard, checked=False) as reader:
            yield from _columns(reader)
            for row in reader.rows():
                for problem in _row(row, last, seen, reader.info.levels):
                    yield Problem(f"{file}: row {row.key!r}", problem)
                last = row
                yield row
    except ViqError as error:
        yield Problem(str(file), str(error).removeprefix(f"{file}: "))


def _columns(reader: CodesReader) -> Iterator[Problem]:
    missing = {"image_index", "rows", "cols", "tile"} - set(reader.columns)
    if missing:
        yield Problem(str(reader.path), f"has no columns {', '.join(sorted(missing))}")
    if not reader.info.levels:
        yield Problem(str(reader.path), "does not say its FSQ levels: ranges cannot be checked")


def _row(
    row: CodeRow, last: CodeRow | None, seen: set[bytes], levels: tuple[int, ...]
) -> Iterator[str]:
    expected = last.image_index + 1 if last and last.key == row.key else 0
    if row.image_index not in (0, expected):
        yield f"is image {row.image_index} of its sample, expected {expected}"
    if row.image_index == 0:
        digest = hashlib.blake2b(row.key.encode(errors="surrogatepass"), digest_size=12).digest()
        if digest in seen:
            yield "its key was there before"
        seen.add(digest)
    if row.codes is not None:
        largest = int(row.codes.ids.max())
        if levels and largest >= math.prod(levels):
            yield f"code {largest} is outside the codebook of {math.prod(levels)}"
        if row.codes.tile < 0 or row.codes.tile % PATCH_SIZE:
            yield f"tile {row.codes.tile} is no multiple of {PATCH_SIZE} px"
