"""Stores in an object store: written exactly once whatever is killed, and read by every command."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from killed_runs import BROKEN, INPUTS, OPTIONS
from object_store import contents, run
from typer.testing import CliRunner

from viq.cli import app
from viq.core.process import Place
from viq.core.remote import RemoteFolder, location
from viq.core.types import CodesError, ViqError
from viq.data.sources.files import FileSource
from viq.jobs.encode import encode
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.dataset import CodeDataset
from viq.store.folder import CARD, INDEX, JOB, LEDGER, Store, shard_name

NOTES = "_parts/"


@pytest.fixture(scope="module")
def here(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same store in a folder."""
    folder = tmp_path_factory.mktemp("whole") / "codes"
    encode(tokenizer, FileSource([pictures]), folder, OPTIONS)
    return folder


def check_finished(url: str, here: Path) -> None:
    """Byte for byte the store that was written into a folder, and a note for each shard."""
    found = contents(url)
    notes = [found.pop(name) for name in list(found) if name.startswith(NOTES)]
    assert found == {path.name: path.read_bytes() for path in here.iterdir()}
    assert len(notes) == len(Store(here).shards)
    keys = [key for key, _ in Store(url)]
    assert len(keys) == len(set(keys)) == INPUTS - BROKEN


def test_killed_before_and_after_changes(pictures: Path, here: Path, cloud: str) -> None:
    """On one store, each run dies a change later than the one before."""
    out = f"{cloud}/killed"
    for die_at in (1, 4):
        assert run(pictures, out, die_at) == -signal.SIGKILL
        with pytest.raises(CodesError, match="unfinished|no finished store"):
            Store(out)
    assert run(pictures, out) == 0
    check_finished(out, here)
    changes = 2 * len(Store(here).shards) + 4  # job, shards, notes, ledger, card, index
    for die_at in (2 * changes - 3,):
        out = f"{cloud}/late-{die_at}"
        assert run(pictures, out, die_at) == -signal.SIGKILL
        assert run(pictures, out) == 0
        check_finished(out, here)


def test_ranks_write_one_store(
    tokenizer: VisualTokenizer, pictures: Path, here: Path, bucket: str
) -> None:
    out, source = f"{bucket}/ranks", FileSource([pictures])
    assert run(pictures, out, 9, Place(1, 3)) == -signal.SIGKILL
    for rank in range(3):
        encode(tokenizer, source, out, OPTIONS, place=Place(rank, 3))
    check_finished(out, here)


def test_a_note_that_does_not_fit_is_written_anew(
    pictures: Path, here: Path, bucket: str, tokenizer: VisualTokenizer
) -> None:
    """Notes are copies: the shards are what is true."""
    out = f"{bucket}/notes"
    encode(tokenizer, FileSource([pictures]), out, OPTIONS)
    folder = RemoteFolder(out)
    name = f"{NOTES}part-00001.json"
    said = json.loads(folder.read(name, 1 << 20) or b"")
    for wrong in (b"", b"[]", json.dumps(said | {"bytes": 3}).encode(),
                  json.dumps(said | {"sha256": "../x"}).encode(),
                  json.dumps(said | {"facts": {}}).encode()):  # fmt: skip
        folder.write(name, wrong)
        folder.remove(INDEX)
        encode(tokenizer, FileSource([pictures]), out, OPTIONS)
        check_finished(out, here)


def test_begun_otherwise_or_full_of_other_things(
    tokenizer: VisualTokenizer, pictures: Path, bucket: str
) -> None:
    source = FileSource([pictures])
    RemoteFolder(f"{bucket}/mine").write("photo.txt", b"mine")
    with pytest.raises(ViqError, match="other files"):
        encode(tokenizer, source, f"{bucket}/mine", OPTIONS)
    out = f"{bucket}/again.v2"
    encode(tokenizer, source, out, OPTIONS)
    with pytest.raises(ViqError, match="begun with shard_size 7, now 1000"):
        encode(tokenizer, source, out)
    RemoteFolder(out).write("photo.txt", b"mine")
    with pytest.raises(ViqError, match="holds photo.txt beside the store; nothing was removed"):
        encode(tokenizer, source, out, overwrite=True)
    RemoteFolder(out).remove("photo.txt")
    encode(tokenizer, source, out, overwrite=True)
    assert sorted(contents(out)) == sorted(
        [CARD, INDEX, JOB, LEDGER, shard_name(0), f"{NOTES}part-00000.json"]
    )


def viq(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_every_command_reads_and_writes_urls(cloud: str, pictures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in (1, 2, 3):
        shutil.copy(pictures / f"{number:03}.png", few)
    out = f"{cloud}/cli"
    told = viq("encode", few, "-o", out, "--shard-size", 2)
    assert told["outputs"] == [out] and told["images"] == 3
    assert viq("encode", few, "-o", out, "--shard-size", 2)["images"] == 0
    assert viq("info", out)["images"] == 3
    assert viq("store", "lint", out)["problems"] == 0
    assert viq("store", "index", out)["rows"] == 3
    assert viq("store", "stats", f"{out}/part-00000.parquet")["images"] == 2
    assert viq("store", "merge", out, "-o", f"{cloud}/merged")["rows"] == 3
    assert viq("store", "diff", out, f"{cloud}/merged")["equal"]
    assert viq("decode", out, "-o", tmp_path / "back")["images"] == 3
    assert viq("decode", out, "-o", f"{cloud}/back")["images"] == 3
    assert len(contents(f"{cloud}/back")) == 4
    assert viq("store", "export", out, "--webdataset", "-o", tmp_path / "tars")["samples"] == 3
    assert viq("store", "export", out, "--webdataset", "-o", f"{cloud}/tars")["samples"] == 3
    assert contents(f"{cloud}/tars") == {
        path.name: path.read_bytes() for path in (tmp_path / "tars").iterdir()
    }
    again = viq("store", "export", out, "--webdataset", "-o", f"{cloud}/tars", code=2)
    assert "is not empty" in again["error"]
    assert len(CodeDataset(out, cache=tmp_path / "cache")) == 3
    RemoteFolder(out).remove(shard_name(1))
    assert viq("store", "lint", out, code=3)["problems"] > 0
    assert "Traceback" not in CliRunner().invoke(app, ["decode", out, "-o", str(few)]).output


def test_compressed_codes_behind_a_url(bucket: str, pictures: Path) -> None:
    pytest.importorskip("constriction")
    out = f"{bucket}/small"
    assert viq("encode", pictures / "001.png", "-o", out, "--compress")["images"] == 1
    assert [name for name in contents(out) if name.startswith("_entropy-")]
    assert len(list(Store(out))) == 1


# Not of a server of forks: it keeps the environment, and so the bucket, of when it began.
@pytest.mark.parametrize("start", ["fork", "spawn"], indirect=True)
@pytest.mark.parametrize("packed", [True, False])
def test_workers_read_from_a_bucket(
    bucket: str, here: Path, tmp_path: Path, packed: bool, start: str
) -> None:
    """They begin from a process whose connections they cannot use."""
    folder = RemoteFolder(f"{bucket}/read")
    for path in here.iterdir():
        folder.put(path, path.name)
    data = CodeDataset(f"{bucket}/read", cache=tmp_path / "cache", shuffle=0)
    assert next(data.keys())  # this process has connections
    options: dict[str, Any] = {"packed": packed}
    found: Any = data.batches(samples=3, workers=2, even=False, **options)
    assert sum(len(batch) for batch in found) == len(data) == INPUTS - BROKEN


def test_files_of_other_programs_behind_a_url(here: Path, bucket: str, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="reads stores by SQL: pip install duckdb")
    folder = RemoteFolder(f"{bucket}/others")
    for number in (0, 1):
        path = tmp_path / f"{number}.parquet"
        duckdb.sql(f"COPY (SELECT * FROM '{here / shard_name(number)}') TO '{path}'")
        folder.put(path, f"data/train-{number}.parquet")
    rows = len(Store(here).index.shards) and sum(s.rows for s in Store(here).shards[:2])
    assert len(Store(folder.url)) == rows == len(list(Store(folder.url)))
    assert len(CodeDataset(folder.url, cache=tmp_path / "cache")) == rows


def test_what_is_written_to() -> None:
    assert location("file:///a%20b/c") == Path("/a b/c")
    assert location("s3://b/c/") == "s3://b/c"
    pytest.importorskip("fsspec")
    tokenizer = tiny.tokenizer()
    for out, words in (
        ("https://example.com/codes", "viq writes to s3"),
        ("zip://x::s3://b/c.zip", "chain of file systems"),
        ("memory://b/c.parquet", "only folders are written"),
        ("nosuch://b/c", "nosuch"),
    ):
        with pytest.raises(ViqError, match=words) as error:
            encode(tokenizer, FileSource([Path(__file__)]), out)
        assert "\n" not in str(error.value)


def test_folders_and_patterns_of_pictures_behind_urls(
    bucket: str, pictures: Path, tmp_path: Path
) -> None:
    folder = RemoteFolder(f"{bucket}/photos")
    for number in (1, 2, 3):
        folder.put(pictures / f"{number:03}.png", f"a/{number:03}.png")
    folder.write("a/notes.txt", b"mine")
    folder.write("a/.hidden.png", b"mine")
    for number, (spec, keys, others) in enumerate(
        [
            ("", ["a/001.png", "a/002.png", "a/003.png"], 1),
            ("/a/*2.png", ["a/002.png"], 0),
            ("/a/{001..002}.png", ["a/001.png", "a/002.png"], 0),
            ("/a/003.png", ["a/003.png"], 0),
        ]
    ):
        told = viq("encode", folder.url + spec, "-o", tmp_path / f"codes-{number}")
        assert told.get("left_over", {}) == (
            {"files that are no pictures": others} if others else {}
        )
        found = [row.key for row in Store(tmp_path / f"codes-{number}").rows()]
        assert found == [f"{folder.url}/{key}" for key in keys]
    assert (
        "no pictures, tar or Parquet files are there"
        in viq("encode", f"{bucket}/none", "-o", tmp_path / "x", code=2)["error"]
    )
