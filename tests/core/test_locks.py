"""Locks on folders: who is kept out, whose files they are, and that they die with their process."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from viq.core.locks import locked
from viq.core.types import ViqError

_HOLD = """
import signal, sys
from pathlib import Path
from viq.core.locks import locked
with locked(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
    print("held", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("world", [1, 2])
def test_a_lock_dies_with_its_process(tmp_path: Path, world: int) -> None:
    line = [sys.executable, "-c", _HOLD, str(tmp_path), "0", str(world)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ViqError, match="wait until it is done"), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / ".lock").exists()  # nobody removed it, and it hinders nobody
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_ranks_come_and_go_without_sending_each_other_away(tmp_path: Path) -> None:
    errors: list[ViqError] = []

    def work(rank: int) -> None:
        try:
            for _ in range(200):
                with locked(tmp_path, rank, 4):
                    pass
        except ViqError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[rank]) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and list(tmp_path.iterdir()) == []


def test_locks_are_empty_files_of_ours(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    lock = tmp_path / ".lock"
    for make in (
        lambda: lock.symlink_to("victim"), lambda: lock.symlink_to("new"), lambda: os.mkfifo(lock),
        lambda: lock.mkdir(), lambda: lock.write_text("a lock of others"),
    ):  # fmt: skip
        make()
        with pytest.raises(ViqError, match=r"\.lock"), locked(tmp_path):
            pass
        assert os.path.lexists(lock) and not (tmp_path / "new").exists()
        shutil.rmtree(lock) if lock.is_dir() else lock.unlink()
    assert (tmp_path / "victim").read_text() == "precious"
    with pytest.raises(ViqError, match="cannot be locked"), locked(tmp_path / "nowhere"):
        pass
