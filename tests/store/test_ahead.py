"""Shards of a remote store are fetched side by side, and before an epoch comes to them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_stores import codes_of, write_store

from viq.core.remote import RemoteFolder
from viq.core.types import CodesError
from viq.store.dataset import CodeDataset
from viq.store.folder import shard_name


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(write_store(tmp_path / "s", [20] * 12)), "/ahead/codes", recursive=True)
    yield "memory://ahead/codes"
    memory.rm("/ahead", recursive=True)


def fetched(monkeypatch: pytest.MonkeyPatch, before: Any = None, after: Any = None) -> list[str]:
    """The names of shards, as they are fetched."""
    names, get = [], RemoteFolder.get

    def noted(self: RemoteFolder, name: str, to: Path, limit: int | None = None) -> None:
        names.append(name)
        if before:
            before()
        get(self, name, to, limit)
        if after:
            after()

    monkeypatch.setattr(RemoteFolder, "get", noted)
    return names


@pytest.mark.parametrize("limits", [{"tokens": 60}, {"samples": 5}])
@pytest.mark.parametrize("packed", [True, False])
def test_the_next_shards_come_by_themselves(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], packed: bool
) -> None:
    came = threading.Semaphore(0)
    names = fetched(monkeypatch, after=came.release)
    data = CodeDataset(url, cache=tmp_path / "cache")
    found: Any = data.batches(**limits, packed=packed)  # type: ignore[call-overload]
    next(found)
    for _ in range(5):  # the first, and four that follow
        assert came.acquire(timeout=60)
    assert shard_name(0) in names and len(set(names)) == len(names) < 12
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("viq-fetch")]


def test_shards_are_fetched_side_by_side(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for three others; one after another they would wait for ever."""
    barrier = threading.Barrier(4, timeout=60)
    names = fetched(monkeypatch, before=barrier.wait)
    data = CodeDataset(url, cache=tmp_path / "cache", shuffle=0)
    numbers = [n for batch in data.batches(samples=240, packed=True) for n in batch.samples]
    assert sorted(numbers) == list(range(240)) and len(names) == 12


def test_the_first_batch_does_not_wait_for_all_shards(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CodeDataset(url, cache=tmp_path / "cache", shuffle=0)
    monkeypatch.setattr("viq.store.ahead._AHEAD", 0)
    gate, done = threading.Semaphore(11), list[int]()  # the last one waits
    fetched(monkeypatch, before=lambda: gate.acquire(timeout=60), after=lambda: done.append(1))
    found = data.batches(tokens=12, packed=True)
    first = next(found)
    assert 0 < len(done) < 12
    gate.release(12)
    for place, number in enumerate(first.samples.tolist()):
        ids = codes_of(number).ids.reshape(-1, 4)
        assert (first.ids[first.offsets[place] : first.offsets[place + 1]] == ids).all()
    found.close()  # type: ignore[attr-defined]


def test_a_shard_that_is_missing_is_named_when_it_is_needed(url: str, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").rm(f"/ahead/codes/{shard_name(2)}")
    data = CodeDataset(url, cache=tmp_path / "cache")
    found = data.batches(samples=10, packed=True)
    for _ in range(3):
        next(found)
    with pytest.raises(CodesError, match=shard_name(2)):
        list(found)
