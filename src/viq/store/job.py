"""Make a store so that every input is in it exactly once, whenever the process was killed.

Inputs are numbered in their order, and shard k is made of the inputs k*n to (k+1)*n - 1. A shard
appears whole, by a rename, and says in its own metadata which of its inputs failed and why. So the
shards are the one truth: what is done is what is there. Ledger and index are copies of it for
readers, and can be written anew at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

from viq.codec.entropy_model import EntropyModel, beside
from viq.core.files import is_plain, remove_leftovers, sha256_of, write_atomically, write_new
from viq.core.locks import locked
from viq.core.types import CodesError, ViqError
from viq.store.columns import Extras
from viq.store.facts import Counts as Counts
from viq.store.facts import Facts, Failure, write_ledger
from viq.store.folder import (
    CARD,
    CARD_TEXT,
    INDEX,
    JOB,
    LEDGER,
    Index,
    Shard,
    read_begun,
    read_index,
    shard_name,
)
from viq.store.rows import CodeRow, CodesReader, CodesWriter, StoreInfo
from viq.store.schema import samples_of

SHARD_SIZE = "shard_size"  # the option that says how many inputs make a shard
MERGED = "merged"  # the option of a store that was made of others
_SHARD_NAME = re.compile(r"part-(\d{5,9})\.parquet")
# All files of a store, and nothing else: what may be removed from its folder.
_OUR_NAMES = re.compile(
    rf"{_SHARD_NAME.pattern}|{INDEX}|{JOB}|{LEDGER}|{re.escape(CARD)}|_entropy-[0-9a-f]{{16}}\.safetensors"
)
MAX_SHARDS = 1 << 20  # of a store
_FACTS, _OPTIONS = "viq.shard", "viq.options"  # notes in the metadata of a shard


class ShardWriter:
    """Write one shard, input by input in their order; it appears when the block ends well."""

    def __init__(
        self,
        path: Path,
        info: StoreInfo,
        extras: Extras,
        options: Mapping[str, Any],
        inputs: tuple[int, int],
    ) -> None:
        self._writer = CodesWriter(path, info, extras)
        self._options, self.facts = dict(options), Facts(inputs=inputs)

    def __enter__(self) -> ShardWriter:
        self._writer.__enter__()
        return self

    def add(self, rows: Iterable[CodeRow], shrunk: int = 0) -> None:
        """Add the rows of one input, extras packed, of which `shrunk` were made smaller."""
        for row in rows:
            self._writer.add(row.key, row.codes, row.image_index, row.extras)
            self.facts.rows += 1
            if row.codes is not None:
                self.facts.count(row.codes)
        self.facts.shrunk += shrunk

    def fail(self, failure: Failure) -> None:
        """Note an input that gave no codes."""
        self.facts.failures.append(failure)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._writer.note(_OPTIONS, self._options)
            self._writer.note(_FACTS, self.facts.to_json())
        self._writer.__exit__(kind, error, traceback)


class Job:
    """A store being made. Whoever makes one holds its lock: see `open_job`.

    Attributes:
        where: as users call it.
        whole: the facts of the shards that are known to be there, by number.
    """

    def __init__(self, folder: Path, index: Index, extras: Extras) -> None:
        self.folder, self.index, self.extras = folder, index, extras
        self.where = str(folder)
        self.whole: dict[int, Facts] = {}
        self._sums = _listed_sums(folder)  # of shards that did not change, by name

    def look(self, numbers: Iterable[int]) -> None:
        """Bring `whole` up to date for these shards, which others may have written."""
        for number in numbers:
            if (self.folder / shard_name(number)).exists():
                self.whole[number] = read_facts(self.folder, number, self.index)

    def inputs_of(self, number: int) -> tuple[int, int]:
        """The half-open range of inputs of a shard."""
        size = self.index.options[SHARD_SIZE]
        return number * size, min((number + 1) * size, self.index.inputs)

    @contextmanager
    def writing(self, number: int) -> Iterator[ShardWriter]:
        """Write one shard, or write it anew; it is in `whole` when the block has ended well."""
        index = self.index
        writer = ShardWriter(
            self.folder / shard_name(number),
            index.info,
            self.extras,
            index.options,
            self.inputs_of(number),
        )
        if number in self.whole:  # the inputs that are kept do not tell which were shrunk
            writer.facts.shrunk = self.whole[number].shrunk
        # An index says that all is done and gives checksums, which would no longer be true. It is
        # that of this job, whose lock is held.
        (self.folder / INDEX).unlink(missing_ok=True)
        with writer:
            yield writer
        self.whole[number] = writer.facts
        self._sums[shard_name(number)] = sha256_of(self.folder / shard_name(number))

    def finish(self) -> tuple[Index | None, list[int]]:
        """`write_index`, without reading again what this process has written."""
        return write_index(self.folder, self._sums)

    def kept(self, number: int) -> Iterator[tuple[int, list[CodeRow]]]:
        """(input, its rows) of all inputs of a whole shard that did not fail; extras packed."""
        facts = self.whole[number]
        failed = {failure.input for failure in facts.failures}
        inputs = (i for i in range(*facts.inputs) if i not in failed)
        with CodesReader(self._path(number)) as reader:
            samples = samples_of(reader.rows())
            for place, rows in zip_longest(inputs, samples):
                if place is None or rows is None:
                    raise CodesError(f"{reader.path}: does not hold the inputs {facts.inputs[0]} "
                                     f"to {facts.inputs[1] - 1}: damaged, remove it")  # fmt: skip
                yield place, [replace(r, extras=self.extras.pack(r.extras)) for r in rows]

    def keep_entropy_model(self, model: EntropyModel) -> None:
        """Put the model that compresses the codes beside them."""
        model.save_beside(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / shard_name(number)


@contextmanager
def open_job(
    folder: Path, wanted: Index, extras: Extras, *, rank: int = 0, world: int = 1
) -> Iterator[Job]:
    """Begin a store, or go on with one; holds its lock while the block runs.

    Args:
        wanted: model, options, columns and inputs.

    Raises:
        ViqError: the folder holds other things, somebody else writes it, or it was begun with
            another model, other options or other inputs; names the difference.
    """
    require_few(wanted, f"-o {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    strangers = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if strangers and not (folder / JOB).exists():
        raise ViqError(
            f"-o {folder}: holds other files ({strangers[0]}) and no store; give another folder"
        )
    with locked(folder, rank, world):
        _remove_leftovers(folder, rank, world)
        # Of all ranks that begin it at once one does, and the others find what it wrote.
        if not write_new(folder / JOB, wanted.to_json()):
            refuse_changes(folder, read_job(folder), wanted)
        job = Job(folder, wanted, extras)
        job.look(range(count_shards(wanted)))
        try:
            yield job
        finally:
            _remove_leftovers(folder, rank, world)  # of helpers that were killed


def clear(folder: Path) -> None:
    """Remove the store in `folder`: the files that it lists, its index first, and nothing else.

    A folder that does not exist or is empty is left as it is.

    Raises:
        ViqError: the folder holds other things and no store, or somebody else writes it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ViqError(f"{folder}: is no folder; give another, or remove it yourself")
    if not _descriptions(folder):
        for path in folder.iterdir():
            if not path.name.startswith("."):
                raise ViqError(
                    f"{folder}: holds {path.name} and no store of codes; nothing was removed. Give "
                    "another folder, or remove it yourself"
                )
        return
    with locked(folder):
        found = _descriptions(folder)
        models = {beside(index.info.entropy) for index in found if index.info.entropy}
        ours = {LEDGER, *models, *([CARD] if _is_our_card(folder / CARD) else ())}
        count = max((_shard_count(index) for index in found), default=0)
        for path in list(folder.iterdir()):
            shard = _SHARD_NAME.fullmatch(path.name)
            if shard and path.name == shard_name(int(shard[1])) and int(shard[1]) < count:
                ours.add(path.name)
        for name in [INDEX, *sorted(ours), JOB]:  # the last says what there is to remove
            if is_plain(folder / name):
                (folder / name).unlink(missing_ok=True)  # listed by index or job of this store
        _remove_leftovers(folder, 0, 1)


def _is_our_card(path: Path) -> bool:
    return (
        is_plain(path) and path.stat().st_size == len(CARD_TEXT) and path.read_bytes() == CARD_TEXT
    )


def _descriptions(folder: Path) -> list[Index]:
    """What `_job.json` and `_index.json` say of a store; none of either that cannot be read."""
    found = []
    for read in (read_begun, read_index):
        with suppress(ViqError):
            found.append(read(folder))
    return [index for index in found if index is not None]


def _shard_count(index: Index) -> int:
    if index.shards:
        return len(index.shards)
    size = index.options.get(SHARD_SIZE)
    return -(-index.inputs // size) if isinstance(size, int) and size > 0 else 0


def read_job(folder: Path) -> Index:
    """What the store in `folder` is made with. Raises `CodesError`."""
    index = read_begun(folder)
    if index is None:
        raise CodesError(f"{folder}: holds no store of codes ({JOB} is missing)")
    return require_job(index, str(folder / JOB))


def require_job(index: Index, where: str) -> Index:
    """What a `_job.json` says, if a store can be made of it. Raises `CodesError`."""
    size = index.options.get(SHARD_SIZE)
    if type(size) is not int or size < 1:
        raise CodesError(f"{where}: damaged (no {SHARD_SIZE}); begin afresh with --overwrite")
    require_few(index, where)
    return index


def require_few(index: Index, where: str) -> None:
    """No more shards than an index can list; they are counted, and looked for, one by one."""
    if count_shards(index) > MAX_SHARDS:
        raise CodesError(
            f"{where}: {index.inputs:,} inputs in shards of {index.options[SHARD_SIZE]} make more "
            f"than {MAX_SHARDS:,} shards; give a larger --shard-size"
        )


def count_shards(index: Index) -> int:
    """How many shards the store has when it is finished."""
    return -(-index.inputs // index.options[SHARD_SIZE])


def read_facts(folder: Path, number: int, index: Index) -> Facts:
    """What a whole shard says of itself.

    Raises:
        CodesError: it is damaged, or was made with another model or other options.
    """
    with CodesReader(folder / shard_name(number)) as reader:
        if (reader.info, reader.note(_OPTIONS)) != (index.info, index.options):
            raise CodesError(
                f"{reader.path}: made with another model or other options than {folder / JOB} says;"
                " remove it and run viq encode again"
            )
        try:
            facts = Facts.from_json(reader.note(_FACTS))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CodesError(f"{reader.path}: is no part of a store; remove it") from None
        size = index.options[SHARD_SIZE]
        if facts.inputs[0] != number * size or facts.rows != len(reader):
            raise CodesError(
                f"{reader.path}: says that it has {facts.rows} rows of inputs from "
                f"{facts.inputs[0]} on, but has {len(reader)}, and is to begin with "
                f"{number * size}: it belongs elsewhere, remove it"
            )
        return facts


def write_index(
    folder: Path, sums: Mapping[str, str] | None = None
) -> tuple[Index | None, list[int]]:
    """Write the ledger and, if all shards are there, the index.

    Args:
        sums: SHA-256 of shards, by name, as far as they are known.

    Returns:
        The index, or None and the numbers of the shards that are missing.

    Raises:
        CodesError: a shard is damaged, or was made with other options than the rest.
    """
    job = read_job(folder)
    whole, missing = dict[int, Facts](), list[int]()
    for number in range(count_shards(job)):
        if (folder / shard_name(number)).exists():
            whole[number] = read_facts(folder, number, job)
        else:
            missing.append(number)
    failures = [failure for facts in whole.values() for failure in facts.failures]
    write_ledger(folder / LEDGER, failures)
    if missing:
        return None, missing
    shards = [_listed(folder / shard_name(n), facts, sums or {}) for n, facts in whole.items()]
    index = index_of(job, shards, whole.values())
    if not os.path.lexists(folder / CARD):  # else it may be the user's own
        write_new(folder / CARD, CARD_TEXT)
    write_atomically(folder / INDEX, index.to_json())
    return index, []


def index_of(job: Index, shards: Sequence[Shard], facts: Collection[Facts]) -> Index:
    """The index of a store of which all shards are there."""
    totals = {
        name: sum(getattr(one, name) for one in facts)
        for name in ("rows", "images", "pixels", "codes")
    }
    totals["failures"] = sum(len(one.failures) for one in facts)
    totals["bytes"] = sum(shard.bytes for shard in shards)
    return replace(job, shards=tuple(shards), totals=totals)


def digest(keys: Iterable[str]) -> tuple[int, str]:
    """How many keys there are, and 16 hex digits that tell this sequence of keys from others."""
    count, state = 0, hashlib.sha256()
    for key in keys:
        data = key.encode(errors="surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
        count += 1
    return count, state.hexdigest()[:16]


def refuse_changes(folder: Path | str, found: Index, wanted: Index) -> None:
    """Refuse to go on with a store that was begun otherwise. Raises `ViqError`."""

    def differences() -> Iterator[tuple[str, Any, Any]]:
        yield "model", found.info.model, wanted.info.model
        yield "model fingerprint", found.info.fingerprint, wanted.info.fingerprint
        yield "dtype", found.info.dtype, wanted.info.dtype
        yield "entropy model", found.info.entropy or "none", wanted.info.entropy or "none"
        for name in sorted({*found.options, *wanted.options}):
            yield name, found.options.get(name), wanted.options.get(name)
        yield "number of inputs", found.inputs, wanted.inputs
        yield "keys of the inputs", found.keys, wanted.keys
        yield "columns", dict(found.columns), dict(wanted.columns)

    for name, old, new in differences():
        if old != new:
            ways = "give the same again, or another folder"
            if not wanted.options.get(MERGED):  # `viq store merge` replaces nothing
                ways = "give the same again, another folder, or --overwrite to begin afresh"
            raise ViqError(f"-o {folder}: begun with {name} {old}, now {new}: {ways}")


def _remove_leftovers(folder: Path, rank: int, world: int) -> None:
    """What killed processes were writing. Shards of other ranks may be in the making."""

    def is_ours(name: str) -> bool:
        shard = _SHARD_NAME.fullmatch(name)
        return world == 1 if shard is None else int(shard[1]) % world == rank

    remove_leftovers(folder, lambda name: _OUR_NAMES.fullmatch(name) and is_ours(name))


def _listed(path: Path, facts: Facts, sums: Mapping[str, str]) -> Shard:
    return Shard(
        name=path.name,
        rows=facts.rows,
        inputs=facts.inputs,
        bytes=path.stat().st_size,
        sha256=sums.get(path.name) or sha256_of(path),
    )


def _listed_sums(folder: Path) -> dict[str, str]:
    """Checksums in the index of a finished store; none if there is no index."""
    if not (folder / INDEX).exists():
        return {}
    return {shard.name: shard.sha256 for shard in read_index(folder).shards}
