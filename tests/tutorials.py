"""Runs the blocks of a Markdown page, as its reader would: bash and Python, from top to bottom.

A block after `<!-- not run: REASON -->` is passed over. A block marked `text` below one that runs
is what that one prints: numbers may differ, and a line `...` stands for any lines.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

_BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^\n]+ -->\n)?^```(?P<kind>bash|python|text)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MOST = 600  # seconds of a block, on a machine that has other things to do
_DONE = "-- the block is done --"
_PYTHON = f"""
import json, sys
names = {{"__name__": "__main__"}}
for number, line in enumerate(sys.stdin, 1):
    exec(compile(json.loads(line), f"<Python block {{number}}>", "exec"), names)
    print("\\n{_DONE}", flush=True)
"""


@dataclass(frozen=True)
class Block:
    kind: str  # bash, python or text
    text: str
    runs: bool


def blocks(page: str) -> list[Block]:
    return [
        Block(found["kind"], found["text"], found["kind"] != "text" and not found["skip"])
        for found in _BLOCK.finditer(page)
    ]


def run(page: str, folder: Path, **variables: str) -> None:
    """Run a page in a folder, with these variables in its environment.

    Raises:
        AssertionError: a block failed, or printed something else than the page says.
    """
    environment = _environment() | variables
    with _python(folder, environment) as python:
        printed: str | None = None
        for block in blocks(page):
            if block.kind == "text":
                if printed is not None:
                    assert matches(block.text, printed), f"{block.text}\nis not:\n{printed}"
            elif not block.runs:
                printed = None
            elif block.kind == "bash":
                printed = _bash(block.text, folder, environment)
            else:
                printed = _told(python, block.text)


def matches(expected: str, printed: str) -> bool:
    """Whether output is as a page shows it, but for numbers, spaces, and what `...` stands for."""
    pattern = "" if expected.strip() else "\n"
    for line in expected.strip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
            continue
        words = [re.sub(r"\d+(?:\\?[.,]\d+)*", r"\\d[\\d.,]*", re.escape(w)) for w in line.split()]
        words = [".*" if word == re.escape("...") else word for word in words]
        pattern += r"[ \t]*" + r"[ \t]+".join(words) + r"[ \t]*\n"
    return re.fullmatch(pattern, printed.strip() + "\n") is not None


def _environment() -> dict[str, str]:
    scripts = Path(sys.executable).parent
    path = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **offline, "PATH": path, "COLUMNS": "100"}


def _bash(text: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-e", "-c", text], cwd=folder, env=environment, text=True, timeout=_MOST,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@contextmanager
def _python(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A Python that the Python blocks of a page share."""
    with subprocess.Popen(
        [sys.executable, "-c", _PYTHON], cwd=folder, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def _told(python: subprocess.Popen[str], text: str) -> str:
    assert python.stdin and python.stdout
    timer = Timer(_MOST, python.kill)
    timer.start()
    try:
        python.stdin.write(json.dumps(text) + "\n")
        python.stdin.flush()
        lines = iter(python.stdout.readline, "")
        printed = ""
        for line in lines:
            if line.strip() == _DONE:
                return printed
            printed += line
        raise AssertionError(f"{text}failed:\n{printed}")
    finally:
        timer.cancel()
