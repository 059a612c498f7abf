"""The first batch of a remote store is of parts of its shards; all batches are as of a folder."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from code_stores import write_store

from viq.core.files import sha256_of
from viq.core.remote import RemoteError, RemoteFolder
from viq.core.types import CodesError
from viq.store import early
from viq.store.ahead import Ahead
from viq.store.cache_folder import CACHE
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, read_index, shard_name

SHARDS = [2000] * 4  # eight groups of rows each


def listed(folder: Path) -> Path:
    """The same store with the checksums of its files in the index, as `viq encode` writes it."""
    index = read_index(folder)
    shards = [
        replace(s, sha256=sha256_of(folder / s.name), bytes=(folder / s.name).stat().st_size)
        for s in index.shards
    ]
    (folder / INDEX).write_bytes(replace(index, shards=tuple(shards)).to_json())
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return listed(write_store(tmp_path_factory.mktemp("early") / "codes", SHARDS))


def put(folder: Path) -> str:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.put(f"{folder}/", "/early/codes/", recursive=True)
    return "memory://early/codes"


@pytest.fixture
def url(here: Path) -> Iterator[str]:
    yield put(here)
    pytest.importorskip("fsspec").filesystem("memory").rm("/early", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(name, bytes) of what is fetched; of whole files 0."""
    found = list[tuple[str, int]]()
    get, read_range = RemoteFolder.get, RemoteFolder.read_range

    def whole(self: RemoteFolder, name: str, *arguments: Any) -> None:
        found.append((name, 0))
        get(self, name, *arguments)

    def part(self: RemoteFolder, name: str, start: int, stop: int) -> bytes:
        found.append((name, stop - start))
        return read_range(self, name, start, stop)

    monkeypatch.setattr(RemoteFolder, "get", whole)
    monkeypatch.setattr(RemoteFolder, "read_range", part)
    return found


def text(batch: Any) -> Any:
    """All of a batch, packed or of samples, to compare."""
    if isinstance(batch, list):
        return [(s.key, dict(s.extras), [c.ids.tolist() for c in s.codes]) for s in batch]
    values = [batch.ids, batch.offsets, batch.grids_hw, batch.sizes_hw, batch.images, batch.samples]
    captions = [batch.columns["caption"][i].tobytes() for i in range(len(batch))]
    return [value.tolist() for value in values], captions


def same(here: Path, url: str, cache: Path, **options: Any) -> None:
    wanted, found = (
        [
            text(batch)
            for batch in CodeDataset(place, shuffle=3, cache=cache / name).batches(**options)
        ]
        for name, place in (("here", here), ("there", url))
    )
    assert wanted == found


@pytest.mark.parametrize("limits", [{"tokens": 90}, {"samples": 7}])
@pytest.mark.parametrize("packed", [True, False])
def test_the_first_batch_is_of_parts(
    url: str, here: Path, tmp_path: Path, asked: list[tuple[str, int]], limits: Any, packed: bool
) -> None:
    data = CodeDataset(url, shuffle=3, cache=tmp_path / "cache")
    options: dict[str, Any] = {**limits, "packed": packed}
    batches: Any = data.batches(**options)
    first = next(batches)
    begun = [pair for pair in asked if pair[1]]
    size = sum(path.stat().st_size for path in here.glob("*.parquet"))
    assert begun and sum(parts for _, parts in begun) < size
    assert {name for name, _ in asked[: len(begun)]} == {name for name, _ in begun}
    assert asked[: len(begun)] == begun  # whole ones come after
    local = CodeDataset(here, shuffle=3, cache=tmp_path / "here")
    wanted: Any = local.batches(**options)
    assert text(first) == text(next(wanted))
    assert [text(batch) for batch in batches] == [text(batch) for batch in wanted]
    files = {path.name for path in (tmp_path / "cache" / CACHE).iterdir()}
    assert {name[:64] for name in files if name.endswith(".arrow")} == {
        shard.sha256 for shard in read_index(here).shards
    }  # nothing that was not checked against the index
    assert not [name for name in files if "fetch" in name]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("viq")]


@pytest.mark.parametrize("start", ["fork"], indirect=True)  # memory:// is of one process
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_from_a_folder(
    url: str, here: Path, tmp_path: Path, workers: int, start: str
) -> None:
    same(here, url, tmp_path, tokens=90, packed=True, workers=workers)
    same(here, url, tmp_path, tokens=90, packed=True, workers=workers)  # from the cache


def test_resumed_in_the_middle(url: str, here: Path, tmp_path: Path) -> None:
    whole = CodeDataset(here, shuffle=3, cache=tmp_path / "here")
    found = whole.batches(samples=7, packed=True)
    for _ in range(11):
        next(found)
    there = CodeDataset(url, shuffle=3, cache=tmp_path / "there")
    there.load_state_dict(whole.state_dict())
    assert [text(b) for b in there.batches(samples=7, packed=True)] == [text(b) for b in found]


def test_parts_that_cannot_be_had(
    url: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RemoteFolder, name: str, start: int, stop: int) -> bytes:
        raise RemoteError(f"{self.url}/{name}: no parts")

    monkeypatch.setattr(RemoteFolder, "read_range", broken)
    same(here, url, tmp_path, samples=7, packed=True)


def test_files_that_were_written_anew_in_other_groups(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    folder.mkdir()
    for path in here.iterdir():
        if path.suffix == ".parquet":
            pq.write_table(pq.read_table(path), folder / path.name, row_group_size=97)
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    same(folder, put(listed(folder)), tmp_path, samples=7, packed=True)


@pytest.mark.parametrize("place", [0.4, -6])
def test_damage_is_named(
    url: str, tmp_path: Path, asked: list[tuple[str, int]], place: float
) -> None:
    """Of rows, and of the length of the footer: whole shards are fetched then, and refused."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for number in range(len(SHARDS)):
        name = f"/early/codes/{shard_name(number)}"
        data = bytearray(memory.cat_file(name))
        data[int(place * len(data)) if place > 0 else int(place)] ^= 0x5A
        memory.pipe_file(name, bytes(data))
    data = CodeDataset(url, shuffle=3, cache=tmp_path / "cache")
    with pytest.raises(
        CodesError, match=r"part-0000\d.parquet does not have the checksum"
    ) as error:
        for _ in data.batches(samples=7, packed=True):
            pass
    assert "\n" not in str(error.value) and any(parts for _, parts in asked)


def test_a_footer_longer_than_what_is_fetched_first(
    url: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viq.store.ranges._END", 64)
    failed = list[object]()
    monkeypatch.setattr(early.Early, "close", lambda self: failed.append(self))
    data = CodeDataset(url, shuffle=3, cache=tmp_path / "cache")
    batches = data.batches(samples=7, packed=True)
    next(batches)
    assert not failed
    batches.close()  # type: ignore[attr-defined]


def test_samples_of_many_images_are_counted_by_the_index(
    tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    folder = listed(write_store(tmp_path / "codes", [20] * 5, images=3))
    url = put(folder)
    data = CodeDataset(url, cache=tmp_path / "cache")
    assert (data.samples, asked) == ([20] * 5, [])
    same(folder, url, tmp_path, samples=7, packed=True)
    index = read_index(folder)
    lied = [replace(s, inputs=(19 * i, 19 * i + 19)) for i, s in enumerate(index.shards)]
    false = replace(index, inputs=95, shards=tuple(lied)).to_json()
    pytest.importorskip("fsspec").filesystem("memory").pipe_file(f"/early/codes/{INDEX}", false)
    with pytest.raises(CodesError, match="not the file that the index lists"):
        next(CodeDataset(url, cache=tmp_path / "other").batches(samples=7, packed=True))


def test_who_is_wanted_comes_before_who_comes_later() -> None:
    class Shards:
        max_bytes = 100

        def __init__(self) -> None:
            self.taken = list[int]()

        def bytes(self, number: int) -> int:
            return 10

        def __getitem__(self, number: int) -> None:
            self.taken.append(number)

    class Pool:
        def __init__(self) -> None:
            self.tasks = list[Any]()

        def submit(self, task: Any) -> None:
            self.tasks.append(task)

    shards, pool = Shards(), Pool()
    blocks = [[7, 2, 5], [1, 0, 3], [4, 6]]
    ahead = Ahead(shards, blocks, 0.0, pool)  # type: ignore[arg-type]
    ahead.want([2])
    ahead.follow([2])  # the rest of its block, and of the next what fits into half of the cache
    ahead.want([5, 3])
    ahead.follow([5])
    for task in pool.tasks:
        task()
    assert shards.taken == [2, 5, 3, 7, 1, 0]
    shards.taken.clear()
    pool.tasks.clear()
    ahead.follow([3])
    for task in pool.tasks:
        task()
    assert shards.taken == [4, 6]
