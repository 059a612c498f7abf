"""A store after kill -9, at chosen and at random moments, is that of an uninterrupted run.

Beside it what else needs processes of their own: signals, and memory.
"""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from viq.core.process import ALONE, Place
from viq.core.types import ViqError
from viq.data.sources.base import ImageBytes, Row, Source
from viq.data.sources.files import FileSource
from viq.jobs import unfinished
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import Extras
from viq.store.folder import JOB, LEDGER, Index, Store
from viq.store.job import SHARD_SIZE, open_job
from viq.store.rows import StoreInfo

INPUTS, BROKEN, OPTIONS = 90, 10, EncodeOptions(shard_size=7)

# Children are forked by a server that has loaded torch but never run it, so they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "pyarrow.parquet", "viq.jobs.encode", "tiny"])


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(INPUTS):
        height, width = rng.integers(8, 60, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.save(folder / f"{i:03}.png")
    for i in range(0, INPUTS, INPUTS // BROKEN):
        (folder / f"{i:03}.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def whole(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "codes"
    encode(tokenizer, FileSource([pictures]), folder, OPTIONS)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def job(
    pictures: Path, out: Path, begun: Connection, die_at: int = -1, place: Place = ALONE
) -> None:
    """Encode in a process of its own, which kills itself when a file appears: the given one."""
    tokenizer = tiny.tokenizer()
    unfinished._EVERY = 0.0  # a part for every input

    def or_die(appear: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def do(source: str, target: str) -> None:
            nonlocal die_at
            if die_at == 1:
                appear(source, target)
            if die_at in (0, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            die_at -= 2
            appear(source, target)

        return do

    if die_at >= 0:
        os.replace, os.link = or_die(os.replace), or_die(os.link)
    begun.send(True)
    encode(tokenizer, FileSource([pictures]), out, OPTIONS, place=place)


def run(pictures: Path, out: Path, *arguments: object, kill_after: float | None = None) -> int:
    """The exit code of `job`."""
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=job, args=(pictures, out, there, *arguments))
    process.start()
    here.recv()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def check_unfinished(out: Path, whole: dict[str, bytes]) -> None:
    """What is there under its final name is as in the end, ledger apart."""
    if out.exists():
        for name, data in contents(out).items():
            assert name.startswith(".") or name == LEDGER or data == whole[name]


def check_finished(out: Path, whole: dict[str, bytes]) -> None:
    assert contents(out) == whole
    keys = [key for key, _ in Store(out)]
    assert len(keys) == len(set(keys)) == INPUTS - BROKEN
    assert len(whole[LEDGER].splitlines()) == BROKEN


def test_killed_before_and_after_each_rename(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Each run dies at a rename later than the one before, all on one store."""
    renames = len(whole)
    for die_at in range(4):  # a run needs that many, so the store grows from run to run
        assert run(pictures, tmp_path / "codes", die_at) == -signal.SIGKILL
        check_unfinished(tmp_path / "codes", whole)
    assert run(pictures, tmp_path / "codes") == 0
    check_finished(tmp_path / "codes", whole)
    for die_at in (2 * renames - 4, 2 * renames - 3, 2 * renames - 2, 2 * renames - 1):
        out = tmp_path / f"codes-{die_at}"  # at the ledger and at the index
        assert run(pictures, out, die_at) == -signal.SIGKILL
        check_unfinished(out, whole)
        assert run(pictures, out) == 0
        check_finished(out, whole)


def kill_at_random(
    kills: int, tokenizer: VisualTokenizer, pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Kill one store again and again until it is whole, then the next one."""
    rng, killed, stores = random.Random(kills), 0, 0
    start = time.perf_counter()
    encode(tokenizer, FileSource([pictures]), tmp_path / "timed", OPTIONS)
    duration = time.perf_counter() - start
    while killed < kills:
        out, code = tmp_path / f"codes-{stores}", None
        stores += 1
        while code != 0:
            moment = rng.uniform(0, duration) if killed < kills else None
            code = run(pictures, out, kill_after=moment)
            check_unfinished(out, whole)
            killed += code != 0
        check_finished(out, whole)


def test_five_kills(
    tokenizer: VisualTokenizer, pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    kill_at_random(5, tokenizer, pictures, whole, tmp_path)


@pytest.mark.slow
def test_fifty_kills(
    tokenizer: VisualTokenizer, pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    kill_at_random(50, tokenizer, pictures, whole, tmp_path)


def test_two_ranks_at_once_with_kills(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "codes"
    assert run(pictures, out, 8, Place(1, 2)) == -signal.SIGKILL
    pairs = [PROCESSES.Pipe() for _ in range(2)]
    processes = [
        PROCESSES.Process(target=job, args=(pictures, out, there, -1, Place(rank, 2)))
        for rank, (_, there) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_finished(out, whole)


def together(pictures: Path, out: Path, places: list[Place]) -> list[int | None]:
    """Exit codes of processes that begin one store at once."""
    pairs = [PROCESSES.Pipe() for _ in places]
    processes = [
        PROCESSES.Process(target=job, args=(pictures, out, there, -1, place))
        for place, (_, there) in zip(places, pairs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_four_ranks_begin_a_store_at_once(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for turn in range(3):
        out = tmp_path / str(turn)
        assert together(pictures, out, [Place(rank, 4) for rank in range(4)]) == [0] * 4
        check_finished(out, whole)


def test_two_processes_alone_begin_a_store_at_once(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """One writes it, and the other is sent away, unless it comes when all is done."""
    codes = together(pictures, tmp_path / "codes", [ALONE, ALONE])
    assert 0 in codes and set(codes) <= {0, 1}
    check_finished(tmp_path / "codes", whole)


def test_of_many_beginnings_one_is_kept(tmp_path: Path) -> None:
    """Ranks with other options are refused, whoever was first."""
    wanted = [
        Index(
            info=StoreInfo(model="m", fingerprint="", levels=()),
            options={SHARD_SIZE: 5, "tile": tile},
            inputs=20,
        )
        for tile in range(4)
    ]
    for turn in range(20):
        out, begin, refused = tmp_path / str(turn), threading.Barrier(4), list[str]()

        def work(rank: int, out: Path = out, begin=begin, refused=refused) -> None:  # type: ignore[no-untyped-def]
            begin.wait()
            try:
                with open_job(out, wanted[rank], Extras(), rank=rank, world=4):
                    begin.wait()
            except ViqError as error:
                refused.append(str(error))
                begin.wait()

        run_threads(work)
        assert len(refused) == 3 and all("begun with tile" in line for line in refused)
        assert [path.name for path in out.iterdir()] == [JOB]


def run_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=[rank]) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing_behind(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    import subprocess
    import sys

    model = tmp_path / "model"
    tiny.tokenizer().save_pretrained(model)
    out = tmp_path / "codes"
    command = [sys.executable, "-m", "viq.cli", "encode", pictures, "-o", out, "--shard-size", "7",
               "--workers", "1", "--model", model]  # fmt: skip
    for _ in range(10):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not (out / "part-00001.parquet").exists():
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate()
        if process.returncode != 3:  # 3: it was done, with broken pictures, before the signal
            break
        shutil.rmtree(out)
    else:
        pytest.fail("every run was done before its signal came")
    assert process.returncode == 130, errors
    assert "shards are whole: run the same command again to go on" in errors
    assert set(contents(out)) - set(whole) == set()
    check_unfinished(out, whole)


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
