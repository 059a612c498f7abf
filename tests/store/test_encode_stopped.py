"""One file of codes after a stop, signals that end an encode, and the memory that it takes."""

import resource
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import tiny
from killed_runs import BROKEN, INPUTS, PROCESSES, contents, run

from viq.core.types import ViqError
from viq.data.sources.base import ImageBytes, Row, Source
from viq.data.sources.files import FileSource
from viq.jobs import unfinished
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import Store


def stop_after(count: int):
    """A progress function that is interrupted at an input."""
    done = 0

    def progress() -> None:
        nonlocal done
        done += 1
        if done == count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("compress", [False, True])
def test_one_file_is_gone_on_with(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path: Path, compress: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Interrupted again and again, it has the bytes of a run that nobody interrupted."""
    if compress:
        tokenizer = load("viq-tiny")
    options = EncodeOptions(compress=compress)
    source = FileSource([pictures])
    for folder in ("at-once", "often"):
        (tmp_path / folder).mkdir()
    encode(tokenizer, source, tmp_path / "at-once" / "c.parquet", options)
    out = tmp_path / "often" / "c.parquet"
    for count, patience in ((25, 5.0), (40, 0.0), (60, 5.0)):
        monkeypatch.setattr(unfinished, "_EVERY", patience)
        with pytest.raises(KeyboardInterrupt, match=f"{count} of {INPUTS} inputs are kept"):
            encode(tokenizer, source, out, options, progress=stop_after(count))
        assert not out.exists()
    report = encode(tokenizer, source, out, options)
    assert (report.resumed, len(report.failures)) == (60, BROKEN)
    assert contents(out.parent) == contents(tmp_path / "at-once")


def test_one_file_begun_otherwise_is_refused_or_begun_afresh(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path: Path
) -> None:
    source, out = FileSource([pictures]), tmp_path / "c.parquet"
    with pytest.raises(KeyboardInterrupt):
        encode(tokenizer, source, out, progress=stop_after(7))
    with pytest.raises(ViqError, match="begun with tile 1024, now 32.*--overwrite"):
        encode(tokenizer, source, out, EncodeOptions(tile=32))
    report = encode(tokenizer, source, out, EncodeOptions(tile=32), overwrite=True)
    assert report.resumed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.failures.jsonl", "c.parquet"]


def test_overwrite_begins_afresh_and_without_it_is_gone_on_with(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path: Path
) -> None:
    """What was asked once, to replace the file, holds until that job is done."""
    source, out = FileSource([pictures]), tmp_path / "c.parquet"
    out.write_text("old")
    for count in (7, 5):
        with pytest.raises(KeyboardInterrupt, match=f"^interrupted; {count} of .* without --over"):
            encode(tokenizer, source, out, overwrite=True, progress=stop_after(count))
        assert out.read_text() == "old"
    assert encode(tokenizer, source, out).resumed == 5
    assert len(Store(out)) == INPUTS - BROKEN
    with pytest.raises(ViqError, match="exists; give another name, or --overwrite"):
        encode(tokenizer, source, out)


def test_a_signal_while_a_file_is_begun_leaves_what_was_finished_and_no_more(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = FileSource([pictures]), tmp_path / "c.parquet"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "remove_leftovers", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(tokenizer, source, out)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        encode(tokenizer, source, out, progress=stop_after(7))
    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "remove_leftovers", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(tokenizer, source, out)
    assert encode(tokenizer, source, out).resumed == 7


def test_one_file_killed_at_any_rename(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    assert run(pictures, tmp_path / "whole" / "c.parquet") == 0
    out = tmp_path / "killed" / "c.parquet"
    out.parent.mkdir()
    for die_at in (0, 3, 6, 9):
        assert run(pictures, out, die_at) == -signal.SIGKILL
        assert not out.exists()
    assert run(pictures, out) == 0
    assert contents(out.parent) == contents(tmp_path / "whole")


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT)])
def test_signals_end_an_encode_of_large_pictures(
    tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    """One stops it within the work on a picture, and a second one never ends in an abort."""
    import subprocess
    import sys

    for name in ("a.png", "b.png"):
        tiny.picture(1, 1500, 1800).save(tmp_path / name)
    out = tmp_path / "out" / "c.parquet"
    command = [sys.executable, "-m", "viq.cli", "encode", tmp_path, "-o", out]
    process = subprocess.Popen(command, stdout=-1, stderr=subprocess.PIPE, text=True)
    while not (out.parent / ".c.parquet.job" / "_job.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "terminate called" not in errors and "Traceback" not in errors
    if len(signals) == 1:
        assert list(out.parent.iterdir()) == []


class Repeated(Source):
    """One picture, again and again; takes no memory whatever its length."""

    def __init__(self, data: bytes, length: int) -> None:
        self._image, self._length = ImageBytes(data), length

    def __len__(self) -> int:
        return self._length

    def keys(self) -> Iterator[str]:
        return map(str, range(self._length))

    def _row(self, index: int) -> Row:
        return Row(key=str(index), images=(self._image,), extras={"n": index}, where=str(index))


def measure(data: bytes, length: int, out: Path, answer: Connection) -> None:
    """Send the peak memory, in kilobytes, of encoding a source of some length."""
    encode(tiny.tokenizer(), Repeated(data, length), out, EncodeOptions(shard_size=100), workers=4)
    answer.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def test_memory_does_not_grow_with_the_inputs(pictures: Path, tmp_path: Path) -> None:
    data, peaks = (pictures / "001.png").read_bytes(), []
    for length in (200, 2000):
        here, there = PROCESSES.Pipe()
        process = PROCESSES.Process(
            target=measure, args=(data, length, tmp_path / str(length), there)
        )
        process.start()
        peaks.append(here.recv())
        process.join()
    assert peaks[1] - peaks[0] < 16 * 1024
