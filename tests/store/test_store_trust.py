"""Stores and caches of others: nothing of the user is read, written or removed through them."""

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from code_stores import INFO, codes_of, unpacked, write_store

from viq.core import files
from viq.core.types import CodesError, ViqError
from viq.data.batching.code_batches import CodeSource
from viq.store.cache_folder import CACHE, MARK
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, JOB, LEDGER, Index, Store, read_single, shard_name
from viq.store.job import SHARD_SIZE, clear, read_job, write_index, write_ledger
from viq.store.rows import CodesReader


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", [30, 20])


def tampered(store: Path, **changes: object) -> Path:
    """With other words in the first shard of its index."""
    index = json.loads((store / INDEX).read_text())
    index["shards"][0] |= changes
    (store / INDEX).write_text(json.dumps(index))
    return store


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_cache_in_a_home_removes_nothing(store: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in (".ssh/id", ".git/config", "data.arrow", f"{'a' * 64}-1.arrow", ".part"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("precious")
        os.utime(home / name, (0, 0))
        os.utime((home / name).parent, (0, 0))
    before = snapshot(home)
    data = CodeDataset(store, cache=home, cache_bytes=1)
    assert [data[n].key for n in (0, 40, 0)] == ["key0", "key40", "key0"]
    after = snapshot(home)
    assert {name: after.get(name) for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {CACHE}


def test_even_in_our_cache_only_our_files_are_removed(store: Path, tmp_path: Path) -> None:
    CodeDataset(store, cache=tmp_path)[0]
    ours, place = f"{'a' * 64}-1.arrow", tmp_path / CACHE
    theirs = ["notes.arrow", f"{'a' * 63}-1.arrow", ".fetch-x", ".ssh", f".x.{'b' * 16}.part"]
    for name in (ours, *theirs):
        (place / name).write_text("x")
        os.utime(place / name, (0, 0))
    (place / f".{ours}.{'c' * 16}.part").write_text("half")
    os.utime(place / f".{ours}.{'c' * 16}.part", (0, 0))
    (place / f"{'d' * 64}-2.arrow").symlink_to(store / INDEX)
    (place / f".fetch-{'0' * 16}").mkdir()
    os.utime(place / f".fetch-{'0' * 16}", (0, 0))
    CodeDataset(store, cache=tmp_path, cache_bytes=1)[40]
    left = {path.name for path in place.iterdir() if not path.name.endswith("-2.arrow")}
    assert left == {MARK, *theirs}
    assert (place / f"{'d' * 64}-2.arrow").is_symlink() and (store / INDEX).exists()


@pytest.mark.parametrize("kind", ["folder", "file", "pipe"])
def test_a_folder_named_like_our_cache_is_refused(store: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / CACHE
    if kind == "folder":
        place.mkdir()
        (place / "mine").touch()
    elif kind == "file":
        place.touch()
    else:
        place.mkdir()
        os.mkfifo(place / MARK)
    with pytest.raises(ViqError, match="another folder as cache") as error:
        CodeDataset(store, cache=tmp_path)[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "../../../../outside/pwned"), ("sha256", "/var/tmp/pwned"), ("sha256", 7),
        ("name", "../../victim/.profile"), ("name", "/etc/passwd"), ("name", INDEX),
        ("name", shard_name(1)), ("name", None), ("rows", -1), ("rows", 1e30), ("rows", True),
        ("inputs", [1, 30]), ("inputs", [0]), ("bytes", "x"), ("more", 1),
    ],
)  # fmt: skip
def test_names_and_numbers_of_an_index(store: Path, field: str, value: object) -> None:
    with pytest.raises(CodesError, match="damaged") as error:
        CodeDataset(tampered(store, **{field: value}), cache=store.parent / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b"[]", b"7", b"{}", b'{"format": 1}', b"\xff", b"1" * 5000,
     b'{"format": 1, "model": "m", "fingerprint": "", "levels": [' + b"9," * 99 + b"9]}",
     b'{"format": 1, "model": "m", "fingerprint": "../x", "levels": []}',
     b'{"format": 1, "model": "m", "fingerprint": "", "levels": [], "entropy": "../x"}',
     b'{"format": 1, "model": 5, "fingerprint": "", "levels": []}',
     b'{"format": 1, "model": "m", "fingerprint": "", "levels": [], "inputs": NaN}',
     b'{"format": 1, "model": "m", "fingerprint": "", "levels": [], "options": [1]}'],
)  # fmt: skip
def test_indexes_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / INDEX).write_bytes(data)
    with pytest.raises(CodesError) as error:
        Store(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_index_of_more_rows_than_there_are(store: Path) -> None:
    """No memory is taken for 2**50 samples, nor is another sample given."""
    for rows in (2**50, 31):
        index = json.loads((store / INDEX).read_text())
        index["shards"][0] |= {"rows": rows, "inputs": [0, rows]}
        index["shards"][1]["inputs"] = [rows, rows + 20]
        index |= {"inputs": rows + 20, "totals": {"rows": rows + 20, "failures": 0}}
        (store / INDEX).write_text(json.dumps(index))
        with pytest.raises(CodesError, match="not the file that the index lists"):
            list(CodeDataset(store, cache=store.parent / "cache", shuffle=0))


def test_shards_that_are_links_out_of_the_store(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.parquet"
    (store / shard_name(1)).rename(outside)
    (store / shard_name(1)).symlink_to(outside)
    for read in (lambda: list(Store(store)), lambda: CodeDataset(store, cache=tmp_path / "c")[40]):
        with pytest.raises(ViqError, match="lies outside"):
            read()
    (store / shard_name(1)).unlink()
    (store / shard_name(1)).symlink_to(shard_name(0))  # within, as far as links go
    with pytest.raises(CodesError, match="rows"):
        list(Store(store))


def test_a_snapshot_of_the_hub_is_links_to_its_blobs(store: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "rev"
    blobs = tmp_path / "datasets--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for path in store.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert len(list(Store(snapshot))) == 50


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_writes_nowhere_but_into_the_cache(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    with served(store) as url:
        assert CodeDataset(url, cache=tmp_path / "good")[40].codes == (codes_of(40),)
        assert len(unpacked(tmp_path / "good")) == 1
        tampered(store, name="../../victim/.profile")
        before = snapshot(tmp_path)
        with pytest.raises(CodesError, match="damaged"):
            CodeDataset(url, cache=tmp_path / "cache")[0]
        assert snapshot(tmp_path) == before
        index = json.loads((store / INDEX).read_text())
        index["shards"][0] |= {"name": shard_name(0), "bytes": 100}
        (store / INDEX).write_text(json.dumps(index))
        with pytest.raises(CodesError, match="more than the 100 bytes"):
            CodeDataset(url, cache=tmp_path / "cache")[0]


@pytest.mark.parametrize("remote", [False, True])
def test_no_store_puts_its_codes_in_the_place_of_others(
    store: Path, tmp_path: Path, remote: bool
) -> None:
    """A store that lists the checksum of a shard that it does not have."""
    good = files.sha256_of(store / shard_name(0))
    evil = tampered(write_store(tmp_path / "evil", [30, 20], images=2), sha256=good)
    cache = tmp_path / "cache"
    path: str | Path = evil
    if remote:
        memory = pytest.importorskip("fsspec").filesystem("memory")
        memory.put(str(evil), "/bucket/evil", recursive=True)
        path = "memory://bucket/evil"
    with pytest.raises(CodesError, match="checksum"):
        CodeDataset(path, cache=cache)[0]
    data = CodeDataset(tampered(store, sha256=good), cache=cache)
    assert data[0].codes == (codes_of(0),)
    with pytest.raises(CodesError, match="not the file that the index lists"):
        CodeDataset(path, cache=cache)[0]  # now that it is in the cache


def test_pipes_are_no_codes(tmp_path: Path) -> None:
    for name in ("x.viq", "x.parquet", INDEX, JOB):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: read_single(tmp_path / "x.viq"),
        lambda: CodesReader(tmp_path / "x.parquet"),
        lambda: Store(tmp_path / "x.parquet"),
        lambda: Store(tmp_path / "x.viq"),
        lambda: Store(tmp_path),
        lambda: read_job(tmp_path),
    ):
        with pytest.raises(ViqError) as error:
            read()
        assert "\n" not in str(error.value)


def test_only_a_store_is_cleared_and_only_its_own_files(store: Path, tmp_path: Path) -> None:
    spark = tmp_path / "spark"
    spark.mkdir()
    (spark / shard_name(0)).write_text("a table of others")
    (spark / "part-00000-aa.snappy.parquet").write_text("a table of others")
    before = snapshot(spark)
    with pytest.raises(ViqError, match="no store of codes; nothing was removed"):
        clear(spark)
    assert snapshot(spark) == before
    job = Index(info=INFO, options={SHARD_SIZE: 30}, inputs=50)
    (store / JOB).write_bytes(job.to_json())
    kept = ["notes.txt", "part-00002.parquet", "part-000001.parquet", "part-00000-a.parquet",
            f"_entropy-{'0' * 16}.safetensors", ".lock-x"]  # fmt: skip
    for name in kept:
        (store / name).write_text("mine")
    (store / LEDGER).write_text("{}")
    clear(store)
    assert sorted(path.name for path in store.iterdir()) == sorted(kept)
    clear(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    clear(tmp_path / "empty")


def test_a_job_of_more_shards_than_can_be(tmp_path: Path) -> None:
    job = Index(info=INFO, options={SHARD_SIZE: 1}, inputs=2**50)
    (tmp_path / JOB).write_bytes(job.to_json())
    with pytest.raises(CodesError, match="larger --shard-size"):
        write_index(tmp_path)


def test_a_file_that_is_no_ledger_stays(tmp_path: Path) -> None:
    path = tmp_path / "codes.failures.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(ViqError, match="no list of failures"):
        write_ledger(path, [])
    assert path.read_text() == "my notes\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives a folder away")
def test_a_cache_of_another_user_is_refused(store: Path, tmp_path: Path) -> None:
    """Who may write there can put a whole file, sums and all, under the digest of any shard."""
    CodeDataset(store, cache=tmp_path)[0]
    os.chown(tmp_path / CACHE, 12345, 12345)
    with pytest.raises(ViqError, match="not made by viq for this user"):
        CodeDataset(store, cache=tmp_path)[0]


def test_a_key_of_a_store_costs_one_sample(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CodeSource(store, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(CodeDataset, "keys", None)  # which goes over all
        assert [source.key(number) for number in (0, 49, 31)] == ["key0", "key49", "key31"]
    with monkeypatch.context() as patch:
        patch.setattr(CodeDataset, "__getitem__", _damaged)
        assert source.key(49) == "key49"


def _damaged(*arguments: object) -> None:
    raise CodesError("damaged")
