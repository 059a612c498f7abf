"""Measurements that have to end in time: cell after cell, each result on disk as soon as it is
there.

    cells = Cells(folder, seconds=480, device=device)
    cells.run("parity", "golden, float32", lambda: {"max_error": 1e-6}, expected=5)

A cell that fails, or runs out of memory, is one line that says so, and the next one goes on. What
raises no error but kills the process or never returns is for `supervised`, which starts the process
again: cells that have a line are not measured twice, so the same folder also goes on in a later
call.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from viq.core.errors import first_line
from viq.core.files import read_bytes, write_atomically
from viq.core.types import ViqError
from viq.core.untrusted import parse_json

RESULTS, RUNNING = "results.jsonl", "running.json"
RESTART = 75  # exit status of a process that wants to be started again: EX_TEMPFAIL of sysexits.h
_SMALL = 2**20  # bytes of a marker
_LARGE = 2**26  # bytes of results
_GRACE_S = 20.0  # after its limit a cell is stopped from outside
_POLL_S = 0.2


class DeviceLost(ViqError):
    """The GPU no longer answers this process; a new one may do."""


class Cells:
    """The cells of one process.

    Args:
        folder: for `RESULTS`, to which lines are added.
        seconds: until no cell may begin any more.
        device: a `torch.device`.
        echo: called with a line for people, for each cell.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float,
        device: Any,
        echo: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.device, self._echo = folder, device, echo
        self._ends = time.monotonic() + seconds
        self._reserved = 0.0
        # What there was no time for is measured when there is.
        lines = [each for each in read_results(folder) if "skipped" not in each]
        self._done = {(each["part"], each["cell"]) for each in lines}

    def left(self) -> float:
        """Seconds until the end, less those reserved."""
        return self._ends - time.monotonic() - self._reserved

    def reserve(self, seconds: float) -> None:
        """Keep so many seconds at the end for what comes later."""
        self._reserved = seconds

    def is_done(self, part: str, cell: str) -> bool:
        """Whether there is a line of it."""
        return (part, cell) in self._done

    def note(self, part: str, cell: str, values: Mapping[str, Any]) -> None:
        """A line that took no measuring; written once."""
        if not self.is_done(part, cell):
            self._write(part, cell, values)

    def run(
        self, part: str, cell: str, work: Callable[[], dict[str, Any]], *, expected: float
    ) -> dict[str, Any] | None:
        """Measure one cell, unless it has a line; its result, or None.

        Args:
            work: gives what its line says beside `seconds` and `peak_mib`.
            expected: seconds that it takes at most, by rough count: it is not begun with less left,
                and `supervised` stops it after twice as many and some.

        Raises:
            DeviceLost: it failed, and the GPU with it.
        """
        if self.is_done(part, cell):
            return None
        if self.left() < expected:
            self._write(
                part, cell, {"skipped": f"takes about {expected:.0f} s, {self.left():.0f} s left"}
            )
            return None
        marker = {"part": part, "cell": cell, "limit_s": 2 * expected + _GRACE_S}
        write_atomically(self.folder / RUNNING, json.dumps(marker).encode())
        self._clear()
        begun = time.monotonic()
        result, values = None, dict[str, Any]()
        try:
            result = values = work()
        except Exception as error:  # whatever a cell does wrong must not take the others along
            values = {"failed": _reason(error)}
        values = {**values, "seconds": round(time.monotonic() - begun, 2), **self._peak()}
        self._write(part, cell, values)
        (self.folder / RUNNING).unlink(missing_ok=True)  # a name that only this script writes
        self._clear(check=result is None)
        return result

    def _write(self, part: str, cell: str, values: Mapping[str, Any]) -> None:
        append(self.folder, {"part": part, "cell": cell, **values})
        self._done.add((part, cell))
        said = values.get("failed") or values.get("skipped") or f"{values.get('seconds', 0):.1f} s"
        self._echo(f"{part}: {cell}: {said}")

    def _peak(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        import torch

        return {"peak_mib": round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)}

    def _clear(self, check: bool = False) -> None:
        """Give back what earlier cells left on the device. Raises `DeviceLost`."""
        gc.collect()
        if self.device.type != "cuda":
            return
        import torch

        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            if check:
                torch.zeros(1, device=self.device).item()
        except Exception as error:
            raise DeviceLost(f"the GPU no longer answers: {first_line(error)}") from None


def append(folder: Path, values: Mapping[str, Any]) -> None:
    """Add a line to the results, on disk when this returns."""
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(values) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder, [] without any; a last line that was not finished is left out.

    Raises:
        ViqError: the file is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return []
    lines = read_bytes(path, _LARGE).split(b"\n")[:-1]
    found = [parse_json(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]
    for number, each in enumerate(found, 1):
        if not (isinstance(each, dict) and {"part", "cell"} <= each.keys()):
            raise ViqError(f"{path} line {number}: no result of a cell: give another folder")
    return found


def supervised(
    command: Callable[[float], Sequence[str]],
    folder: Path,
    *,
    seconds: float,
    environment: Mapping[str, str],
    starts: int = 6,
) -> None:
    """Run a process of cells to its end, and again whenever a cell has brought it down.

    Args:
        command: what to run, by the seconds it is given.
        folder: where it writes its results.
        seconds: until which it has to be over; its last cell may take `_GRACE_S` more.
        environment: variables of the process.
        starts: of the process, at most.
    """
    ends = time.monotonic() + seconds
    for _ in range(starts):
        left = ends - time.monotonic()
        if left <= 0:
            return
        (folder / RUNNING).unlink(missing_ok=True)  # the same
        child = subprocess.Popen(command(left), env=dict(environment), start_new_session=True)
        reason = _watched(child, folder, ends + _GRACE_S)
        if child.returncode == 0:
            return
        marker = _marker(folder)
        if marker is not None:
            told = reason or f"ended its process with {child.returncode}"
            append(folder, {"part": marker["part"], "cell": marker["cell"], "failed": told})
        elif child.returncode != RESTART:  # not in a cell: it would fail again
            append(folder, {"part": "process", "cell": "end",
                            "failed": reason or f"ended with {child.returncode}"})  # fmt: skip
            return


def _watched(child: subprocess.Popen[bytes], folder: Path, ends: float) -> str | None:
    """Wait for a process; why it was stopped, or None. Nothing of it is left running."""
    seen: tuple[str, float] | None = None
    reason = None
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)
            now, marker = time.monotonic(), _marker(folder)
            if marker is None:
                seen = None
            elif seen is None or seen[0] != marker["cell"]:
                seen = (marker["cell"], now)
            elif now - seen[1] > marker["limit_s"]:
                reason = f"stopped after {now - seen[1]:.0f} s"
                break
            if now > ends:
                reason = "stopped: the time was over"
                break
    finally:
        if child.poll() is None:
            _stop(child)
    return reason


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, which are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
        break
    child.wait()


def _marker(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_bytes(folder / RUNNING, _SMALL))
    except (OSError, ValueError):
        return None
    return (
        found if isinstance(found, dict) and {"part", "cell", "limit_s"} <= found.keys() else None
    )


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    return f"{type(error).__name__}: {first_line(error)}"
