"""Fair timing and memory figures: interleaved runs, medians, fresh processes.

A time alone says little on a shared or throttled machine, so nothing here gives one without its
baseline: `compare` runs its variants in turn (A B A B ...), so that a slow minute hits all alike.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import viq

# Runs a command and prints its exit status and peak memory. It stands between us and the command
# because Linux starts a new process at the peak of the one that forks it: started from here, a
# small command would be charged with the memory of this process.
_LAUNCHER = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss]))
"""
_CALL = """
import importlib, json, sys
name, function, arguments = sys.argv[1:]
getattr(importlib.import_module(name), function)(*json.loads(arguments))
"""


def compare(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time variants of the same work in turn, after running each once to warm up.

    Args:
        variants: name to function without arguments; the first is the baseline.
        repeats: timed runs of each.
        clock: seconds, as a function.

    Returns:
        For each name `median_s`, `min_s`, `max_s` (seconds) and `ratio_to_first`: its median over
        that of the first, so 2 means twice as long as the baseline.
    """
    if repeats < 1 or not variants:
        raise ValueError(
            f"cannot compare {len(variants)} variants in {repeats} runs: pass at least 1 of each"
        )
    for function in variants.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, function in variants.items():
            _finish()
            start = clock()
            function()
            _finish()
            times[name].append(clock() - start)
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    first = next(iter(medians.values()))
    return {
        name: {
            "median_s": medians[name],
            "min_s": min(spent),
            "max_s": max(spent),
            "ratio_to_first": medians[name] / first,
        }
        for name, spent in times.items()
    }


def peak_memory(work: Sequence[str] | Callable[..., Any], *arguments: Any) -> float | None:
    """Peak resident memory of a fresh process, MiB; None where the system does not tell (Windows).

    Python and all it imports are included: that is what the work needs to run at all.

    Args:
        work: a command, or a function at the top level of a module.
        arguments: of the function; whatever JSON can carry.

    Raises:
        RuntimeError: the process failed; the message ends in the last line it printed.
        ValueError: the function cannot be imported by name.
    """
    if not hasattr(os, "wait4"):
        return None
    if callable(work):
        if work.__module__ == "__main__" or "." in work.__qualname__:
            raise ValueError(
                f"a fresh process cannot import {work.__module__}.{work.__qualname__}: pass a "
                "function at the top level of a module"
            )
        call = (work.__module__, work.__qualname__, json.dumps(arguments))
        command = [sys.executable, "-c", _CALL, *call]
    else:
        command = [*work, *map(str, arguments)]
    # -I -S: a bare interpreter, so that the launcher itself stays small.
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(
        launch, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    status, peak = json.loads(done.stdout) if done.returncode == 0 else (done.returncode, 0)
    if status:
        raise RuntimeError(f"the measured process ended with {status}: {_last_line(done.stderr)}")
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS bytes, others KiB


def run_command(command: Sequence[str]) -> None:
    """Run a command to its end, output dropped.

    Raises:
        RuntimeError: it failed; the message ends in the last line it printed.
    """
    done = subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {_last_line(done.stderr)}")


def environment() -> dict[str, str]:
    """Our environment variables, by which a child imports the same `viq` as this process."""
    values, home = dict(os.environ), Path(viq.__file__ or "").resolve().parents[1]
    if not home.name.endswith("-packages"):  # run from source; an installed viq is found anyway
        paths = [str(home), values.get("PYTHONPATH", "")]
        values["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return values


def machine() -> dict[str, Any]:
    """What the figures depend on; no names of hosts, users or folders."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
    }


def _finish() -> None:
    """Wait for the GPU: its work would otherwise still run when the clock is read."""
    torch = sys.modules.get("torch")  # without it nothing of ours can be at work there
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _cpu() -> str:
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except (OSError, StopIteration):  # StopIteration: Arm kernels name no model
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
