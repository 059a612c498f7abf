"""A store after kill -9, at chosen and at random moments, is that of an uninterrupted run."""

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from killed_runs import BROKEN, INPUTS, OPTIONS, PROCESSES, contents, job, run

from viq.core.process import ALONE, Place
from viq.core.types import ViqError
from viq.data.sources.files import FileSource
from viq.jobs.encode import encode
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import Extras
from viq.store.folder import JOB, LEDGER, Index, Store
from viq.store.job import SHARD_SIZE, open_job
from viq.store.rows import StoreInfo


@pytest.fixture(scope="module")
def whole(
    tokenizer: VisualTokenizer, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "codes"
    encode(tokenizer, FileSource([pictures]), folder, OPTIONS)
    return contents(folder)


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
