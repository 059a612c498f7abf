"""`viq decode` into an object store: gone on with after kills, and nothing of others replaced."""

import json
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import tiny
from killed_runs import PROCESSES
from object_store import contents

from viq.core import remote_outputs
from viq.core.remote import RemoteError, RemoteFolder
from viq.core.types import ViqError
from viq.data.sources.files import FileSource
from viq.jobs.decode import MANIFEST, decode_files
from viq.jobs.encode import encode
from viq.models.tokenizer.tokenizer import VisualTokenizer


@pytest.fixture(scope="module")
def codes(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of 17 pictures."""
    out = tmp_path_factory.mktemp("codes") / "codes.parquet"
    encode(tokenizer, FileSource(sorted(pictures.iterdir())[:20]), out)
    return out


@pytest.fixture(scope="module")
def here(tokenizer: VisualTokenizer, codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in a folder."""
    folder = tmp_path_factory.mktemp("back")
    assert decode_files(tokenizer, [codes], folder).images == 17
    return folder


def job(codes: Path, out: str, settings: dict[str, str], begun: Connection, die_at: int) -> None:
    """Decode into a URL, five pictures at a time; dies before a change there, the given one."""
    os.environ.update(settings)
    remote_outputs._GROUP = 5
    write = RemoteFolder.write

    def or_die(self: RemoteFolder, name: str, data: bytes) -> None:
        nonlocal die_at
        if die_at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        die_at -= 1
        write(self, name, data)

    RemoteFolder.write = or_die
    begun.send(True)
    decode_files(tiny.tokenizer(), [codes], out)


def run(codes: Path, out: str, die_at: int) -> int:
    here, there = PROCESSES.Pipe()
    settings = {n: value for n, value in os.environ.items() if n.startswith(("AWS", "XDG"))}
    process = PROCESSES.Process(target=job, args=(codes, out, settings, there, die_at))
    process.start()
    here.recv()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def check_whole(out: str, here: Path) -> None:
    found = contents(out)
    listed = [json.loads(line) for line in found.pop(MANIFEST).splitlines()]
    local = [json.loads(line) for line in (here / MANIFEST).read_text().splitlines()]
    assert found == {p.name: p.read_bytes() for p in here.iterdir() if p.name != MANIFEST}
    for entry in listed[1:]:
        assert entry.pop("bytes") == len(found[entry["file"]])
    assert listed[0] == local[0]
    assert sorted(listed[1:], key=str) == sorted(local[1:], key=str)


def test_gone_on_with_after_kills(
    tokenizer: VisualTokenizer, codes: Path, here: Path, bucket: str
) -> None:
    """Before the first group, within it, between groups, and before the list of all."""
    out = f"{bucket}/back"
    for die_at in (0, 3, 6):
        assert run(codes, out, die_at) == -signal.SIGKILL
        assert MANIFEST not in contents(out)
    done = [name for name in contents(out) if name.endswith(".png")]
    assert len(done) == 2 + 5
    report = decode_files(tokenizer, [codes], out)
    assert (report.resumed, report.images) == (len(done), 17 - len(done))
    check_whole(out, here)
    late = f"{bucket}/late"
    assert run(codes, late, 17 + 4) == -signal.SIGKILL  # four groups are written
    assert decode_files(tokenizer, [codes], late).resumed == 17
    check_whole(late, here)
    assert decode_files(tokenizer, [codes], late).resumed == 17
    check_whole(late, here)


def test_nothing_of_others_is_replaced(
    tokenizer: VisualTokenizer, codes: Path, here: Path, bucket: str
) -> None:
    folder = RemoteFolder(f"{bucket}/mine")
    name = sorted(p.name for p in here.iterdir())[0]
    folder.write(name, b"mine")
    with pytest.raises(ViqError, match=f"{bucket}/mine/{name}: exists and this job did not"):
        decode_files(tokenizer, [codes], folder.url)
    assert contents(folder.url) == {name: b"mine"}
    assert decode_files(tokenizer, [codes], folder.url, overwrite=True).images == 17
    check_whole(folder.url, here)
    folder.write(name, b"retouched")
    report = decode_files(tokenizer, [codes], folder.url)
    (failure,) = report.failures
    assert "is not what this job made" in failure["reason"]
    assert folder.read(name, 99) == b"retouched"
    folder.write(MANIFEST, b"a text of mine\n")
    with pytest.raises(ViqError, match="is not the list of files that viq decode writes"):
        decode_files(tokenizer, [codes], folder.url, overwrite=True)
    for out, words in (("https://example.com/x", "viq writes to s3"), ("a::s3://b", "chain")):
        with pytest.raises(ViqError, match=words):
            decode_files(tokenizer, [codes], out)


def test_a_place_that_fails_ends_the_job(
    tokenizer: VisualTokenizer, codes: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than each picture of it."""

    def fails(*_: Any) -> None:
        raise RemoteError("s3://x: it cannot be written (EndpointConnectionError)")

    monkeypatch.setattr(remote_outputs, "_GROUP", 5)
    monkeypatch.setattr(RemoteFolder, "write", fails)
    with pytest.raises(RemoteError, match="cannot be written"):
        decode_files(tokenizer, [codes], f"{bucket}/fails")
