"""What a data set of codes unpacks: bounded, shared by threads, and ended with its process."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from code_stores import codes_of, opened, unpacked, write_store

from viq.core.types import CodesError
from viq.store import cache
from viq.store.cache_folder import CACHE
from viq.store.dataset import CodeDataset


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", [50] * 6)
    whole = [sample.key for sample in opened(path)]
    size = max(file.stat().st_size for file in unpacked(tmp_path / "cache"))
    small = CodeDataset(path, cache=tmp_path / "small", cache_bytes=int(2.5 * size))
    for number in (0, 299, 0, 120, 299, 5, 70, 180, 230):
        assert small[number].codes == (codes_of(number),)
        files = unpacked(tmp_path / "small")
        assert sum(file.stat().st_size for file in files) <= 2.5 * size
    assert [sample.key for sample in small] == whole


def test_a_cache_that_vanishes_or_is_damaged_is_written_anew(store: Path, tmp_path: Path) -> None:
    data = CodeDataset(store, cache=tmp_path)
    data[0]
    for file in unpacked(tmp_path):
        file.unlink()
    data[100]
    for damage in (b"nothing", b""):
        for file in unpacked(tmp_path):
            file.write_bytes(damage)
        assert CodeDataset(store, cache=tmp_path)[100].codes == (codes_of(100),)
    shutil.rmtree(tmp_path / CACHE)
    assert CodeDataset(store, cache=tmp_path)[100].codes == (codes_of(100),)


def test_rotten_bits_of_the_cache_never_give_other_codes(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", [300, 10], images=2)
    data = opened(path)
    whole = [data[n] for n in range(len(data) - 1, -1, -1)][::-1]
    file = max(unpacked(tmp_path / "cache"), key=lambda file: file.stat().st_size)
    good, draw = file.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(good)
        bad[draw.integers(len(bad))] ^= 1 << draw.integers(8)
        file.write_bytes(bad)
        assert list(opened(path)) == whole
        assert file.read_bytes() == good
    for bad in (good[:-1], good + b"x", good[100:], good[: len(good) // 2] * 2):
        file.write_bytes(bad)
        assert list(opened(path)) == whole


def test_threads_read_one_data_set(store: Path, tmp_path: Path) -> None:
    """With a cold cache, and with room for one shard at a time."""
    for turn in range(15):
        room = 1 if turn % 3 == 2 else 1 << 30
        data = CodeDataset(store, cache=tmp_path / str(turn), cache_bytes=room)
        begin, errors = threading.Barrier(6), list[BaseException]()

        def read(seed: int, data=data, begin=begin, errors=errors) -> None:  # type: ignore[no-untyped-def]
            try:
                begin.wait()
                for number in np.random.default_rng(seed).permutation(356)[:60].tolist():
                    assert data[number].codes == (codes_of(number),)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=[seed]) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        shutil.rmtree(tmp_path / str(turn))


def test_threads_unpack_a_shard_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Path]()

    def write(path: Path, *rest: object) -> None:
        made.append(path)
        unpack(path, *rest)  # type: ignore[arg-type]

    unpack = cache.write
    monkeypatch.setattr(cache, "write", write)
    data, begin = CodeDataset(store, cache=tmp_path), threading.Barrier(6)
    threads = [threading.Thread(target=lambda: (begin.wait(), data[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_remote_store(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write_store(tmp_path / "s", [50, 60])
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/bucket/codes", recursive=True)
    for url, first, count in (
        ("memory://bucket/codes", 0, 110),
        ("memory://bucket/codes/part-00001.parquet", 50, 60),
    ):
        data = CodeDataset(url, cache=tmp_path / "cache", shuffle=0)
        assert len(data) == count
        assert data[7].codes == (codes_of(first + 7),)
        assert f"key{first + 9}" in data
        assert len(list(data)) == count
    assert unpacked(tmp_path / "cache")
    with pytest.raises(CodesError, match="finished store"):
        CodeDataset("memory://bucket/nothing", cache=tmp_path / "cache")


LOOP = """
import sys, time, viq
data = viq.CodeDataset(sys.argv[1], cache=sys.argv[2], shuffle=0)
while True:
    for batch in data.batches(samples=2, workers=2):
        print("step", flush=True)
        time.sleep(0.2)  # workers are there, waiting
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
def test_nothing_is_left_after_an_interrupt(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOOP, str(store), str(tmp_path / "cache")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as loop:
        assert loop.stdout
        assert loop.stdout.readline() == b"step\n"
        members = _session(loop.pid)
        assert len(members) >= 3
        for _ in range(8):  # again where it came in a destructor, in which Python swallows it
            os.killpg(loop.pid, signal.SIGINT)  # as a terminal does
            with contextlib.suppress(subprocess.TimeoutExpired):
                loop.communicate(timeout=10)
                break
        assert loop.returncode is not None
    deadline = time.monotonic() + 10
    while _session(loop.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _session(loop.pid) == []
    shared = os.listdir("/dev/shm")  # torch names it after the process; others are at work too
    assert not [name for name in shared if any(f"_{member}_" in name for member in members)]
    assert unpacked(tmp_path / "cache")


ENDS = """
import multiprocessing, pathlib, sys, time, viq
from viq.store import cache
begun, ending, write = pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4]), cache.write

def slow(path, schema, batches):
    begun.touch()
    while not ending.exists():
        time.sleep(0.01)
    time.sleep(0.5)  # for whoever would kill this process
    write(path, schema, batches)

cache.write = slow  # in a worker, too: it is forked with this, or imports this file
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[5])
    data = viq.CodeDataset(sys.argv[1], cache=sys.argv[2], columns=())
    batches = data.batches(samples=1, workers=1)
    next(batches)  # of a shard that was unpacked before; the worker reads ahead of it
    while not begun.exists():
        time.sleep(0.01)
    ending.touch()
    raise KeyboardInterrupt
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a fork after threads may end the process"
)
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])  # the last since Python 3.14
def test_a_worker_ends_what_it_unpacks_when_the_process_ends(start: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [1, 5])
    assert CodeDataset(store, cache=tmp_path / "cache", columns=())[0].key == "key0"
    (tmp_path / "ends.py").write_text(ENDS)
    places = [tmp_path / name for name in ("ends.py", "store", "cache", "begun", "ending")]
    done = subprocess.run([sys.executable, *map(str, places), start], capture_output=True)
    assert done.returncode != 0 and b"KeyboardInterrupt" in done.stderr
    assert len(unpacked(tmp_path / "cache")) == 2  # no file under another name


def _session(leader: int) -> list[str]:
    """Processes that are left of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(leader) and fields[0] != "Z":
            found.append(path.parent.name)
    return found
