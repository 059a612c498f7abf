"""A store being made behind a URL: each shard is written here, and put there when it is whole.

An object store takes a file as a whole or not at all, so all is as in a folder: what is there is
done, and the same command goes on. Two things differ. There are no locks; two processes that write
one store waste work and spoil nothing, as shards depend on their inputs alone. And to look into a
shard it must be fetched; so beside the shards lie notes, `_parts/part-NNNNN.json`, of what each
says of itself, with its SHA-256. A shard without a note, or whose note does not fit, is fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from viq.codec.entropy_model import EntropyModel, beside
from viq.core.files import sha256_of
from viq.core.locks import locked
from viq.core.remote import Location, RemoteFolder
from viq.core.types import CodesError, ViqError
from viq.core.untrusted import INDEX_BYTES, parse_json, sha256, whole_number
from viq.store.columns import Extras
from viq.store.facts import Facts, failure_lines, is_ledger
from viq.store.fetched import FetchedFiles
from viq.store.folder import CARD, CARD_TEXT, INDEX, JOB, LEDGER, Index, Shard, shard_name
from viq.store.job import (
    Job,
    ShardWriter,
    count_shards,
    index_of,
    open_job,
    read_facts,
    refuse_changes,
    require_few,
    require_job,
    write_index,
)

_NOTE_BYTES = 64 << 20  # of what a shard says of itself
_FEW = 8  # shards that are looked for one by one


class RemoteJob(Job):
    """A store being made behind a URL; see `viq.store.job.Job`."""

    def __init__(self, remote: RemoteFolder, index: Index, extras: Extras) -> None:
        self.remote, self._files = remote, FetchedFiles(remote)
        super().__init__(self._files.here, index, extras)
        self.where = remote.url
        self._bytes: dict[int, int] = {}
        self._of = hashlib.sha256(index.to_json()).hexdigest()  # notes of another job do not count
        self._files.entropy_model(index.info.entropy)

    def look(self, numbers: Iterable[int]) -> None:
        wanted = list(numbers)
        if len(wanted) > _FEW:
            sizes = self.remote.sizes()
            there = {n: sizes[shard_name(n)] for n in wanted if shard_name(n) in sizes}
        else:
            found = ((n, self.remote.size(shard_name(n))) for n in wanted)
            there = {n: size for n, size in found if size is not None}
        for number, size in there.items():
            if number not in self.whole or self._bytes.get(number) != size:
                self._note(number, size)

    @contextmanager
    def writing(self, number: int) -> Iterator[ShardWriter]:
        name = shard_name(number)
        writer = ShardWriter(
            self.folder / name, self.index.info, self.extras, self.index.options,
            self.inputs_of(number),
        )  # fmt: skip
        if number in self.whole:
            writer.facts.shrunk = self.whole[number].shrunk
            self.remote.remove(_note_name(number))  # of the shard that is replaced
        self.remote.remove(INDEX)  # which says that all is done; see `Job.writing`
        with writer:
            yield writer
        path = self.folder / name
        self._said(number, writer.facts, path)
        self.remote.put(path, name)
        self._write_note(number)
        path.unlink()  # written above, in a folder of our own
        self._files.forget(name)

    def finish(self) -> tuple[Index | None, list[int]]:
        self.look(range(count_shards(self.index)))
        missing = [n for n in range(count_shards(self.index)) if n not in self.whole]
        failures = [f for n in sorted(self.whole) for f in self.whole[n].failures]
        lines = failure_lines(failures)
        if lines:
            self.remote.write(LEDGER, lines)
        else:
            self.remote.remove(LEDGER)  # a list of ours, as `begin` has seen
        if missing:
            return None, missing
        shards = [
            Shard(
                name=shard_name(n), rows=facts.rows, inputs=facts.inputs, bytes=self._bytes[n],
                sha256=self._sums[shard_name(n)],
            )
            for n, facts in sorted(self.whole.items())
        ]  # fmt: skip
        index = index_of(self.index, shards, self.whole.values())
        self.remote.create(CARD, CARD_TEXT)
        self.remote.write(INDEX, index.to_json())
        return index, []

    def keep_entropy_model(self, model: EntropyModel) -> None:
        model.save_beside(self.folder)
        name = beside(model.digest)
        if self.remote.size(name) is None:
            self.remote.put(self.folder / name, name)

    def _path(self, number: int) -> Path:
        return self._files.file(shard_name(number))

    def _said(self, number: int, facts: Facts, path: Path) -> None:
        self.whole[number] = facts
        self._bytes[number] = path.stat().st_size
        self._sums[shard_name(number)] = sha256_of(path)

    def _note(self, number: int, size: int) -> None:
        """What a shard of so many bytes says of itself: by its note, or by a look into it."""
        data = self.remote.read(_note_name(number), _NOTE_BYTES)
        try:
            note = parse_json(data or b"", "")
            facts = Facts.from_json(note["facts"])
            same = note["job"] == self._of and whole_number(note["bytes"], "bytes") == size
            first, last = self.inputs_of(number)
            if not same or facts.inputs != (first, last) or not note["sha256"]:
                raise ValueError
            self._sums[shard_name(number)] = sha256(note["sha256"], "sha256")
            self.whole[number], self._bytes[number] = facts, size
        except (ViqError, ValueError, TypeError, KeyError, AttributeError):
            path = self._path(number)
            self._said(number, read_facts(self.folder, number, self.index), path)
            self._write_note(number)
            self._files.forget(shard_name(number))

    def _write_note(self, number: int) -> None:
        note = {
            "job": self._of,
            "bytes": self._bytes[number],
            "sha256": self._sums[shard_name(number)],
            "facts": self.whole[number].to_json(),
        }
        self.remote.write(_note_name(number), json.dumps(note).encode())


@contextmanager
def open_job_at(
    place: Location, wanted: Index, extras: Extras, *, rank: int = 0, world: int = 1
) -> Iterator[Job]:
    """As `viq.store.job.open_job`, in a folder or behind a URL."""
    opened = (
        open_job(place, wanted, extras, rank=rank, world=world)
        if isinstance(place, Path)
        else _open_remote_job(place, wanted, extras)
    )
    with opened as job:
        yield job


def joined_job(place: Location, index: Index, extras: Extras) -> Job:
    """A store that another process has begun, to write some of its shards."""
    if isinstance(place, Path):
        return Job(place, index, extras)
    return RemoteJob(RemoteFolder(place), index, extras)


def write_index_at(place: Location) -> tuple[Index | None, list[int]]:
    """As `viq.store.job.write_index`, in a folder, whose lock it holds, or behind a URL."""
    if isinstance(place, Path):
        with locked(place):
            return write_index(place)
    remote = RemoteFolder(place)
    return RemoteJob(remote, read_remote_job(remote), Extras()).finish()


@contextmanager
def _open_remote_job(url: str, wanted: Index, extras: Extras) -> Iterator[RemoteJob]:
    remote = RemoteFolder(url)
    require_few(wanted, f"-o {url}")
    remote.require_writable()
    names = remote.sizes()
    strangers = [name for name in names if not name.startswith(".")]
    if strangers and JOB not in names:
        raise ViqError(
            f"-o {url}: holds other files ({strangers[0]}) and no store; give another folder"
        )
    if LEDGER in names and not is_ledger(remote.read(LEDGER, INDEX_BYTES) or b""):
        raise ViqError(f"-o {url}: {LEDGER} is no list that viq wrote; give another folder")
    if not remote.create(JOB, wanted.to_json()):
        refuse_changes(url, read_remote_job(remote), wanted)
    job = RemoteJob(remote, wanted, extras)
    job.look(range(count_shards(wanted)))
    yield job


def read_remote_job(remote: RemoteFolder) -> Index:
    """What the store behind a URL is made with. Raises `CodesError`."""
    data, where = remote.read(JOB, INDEX_BYTES), f"{remote.url}/{JOB}"
    if data is None:
        raise CodesError(f"{remote.url}: holds no store of codes ({JOB} is missing)")
    return require_job(Index.from_json(data, where), where)


def clear_remote(url: str) -> None:
    """Remove the store behind a URL: its own files, the index first, and nothing else.

    Raises:
        ViqError: other files lie beside the store; nothing was removed.
    """
    remote = RemoteFolder(url)
    remote.require_writable()
    names = remote.sizes(deep=True)
    if JOB not in names:
        return  # nothing that was begun; `open_job_at` refuses what else is there
    job = read_remote_job(remote)
    shards = {shard_name(n) for n in range(count_shards(job))}
    notes = {f"_parts/{Path(name).stem}.json" for name in shards}
    models = {beside(job.info.entropy)} if job.info.entropy else set[str]()
    has_card = remote.read(CARD, INDEX_BYTES) == CARD_TEXT  # else it is the user's own
    ours = shards | notes | models | {LEDGER, *([CARD] if has_card else ())}
    others = sorted(names.keys() - ours - {INDEX, JOB, CARD})
    if others:
        raise ViqError(
            f"-o {url}: holds {others[0]} beside the store; nothing was removed. Move it away, or "
            "give another folder"
        )
    for name in [INDEX, *sorted(ours & names.keys()), JOB]:
        remote.remove(name)


def _note_name(number: int) -> str:
    return f"_parts/{Path(shard_name(number)).stem}.json"
