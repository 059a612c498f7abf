"""A library to compare with, in a process and an environment of its own (`viq.bench.peer`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from viq.bench import peer
from viq.core.codes import Codes
from viq.core.types import ViqError

NO_PEER = "no environment: run bench/peers.sh, pass its --peers"


def peer_python(peers: Path | None, name: str) -> Path | None:
    """The interpreter of a library in a folder that bench/peers.sh made; None if there is none."""
    python = peers / name / "bin" / "python" if peers else None
    return python if python and python.exists() else None


class Peer:
    """A library in a process of its own.

    Attributes:
        about: its `version`, and that of its `torch`.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin and process.stdout
        self._in, self._out = process.stdin, process.stdout
        self.about: dict[str, str] = self._answer()

    def read(self, kind: str) -> Any:
        """Its answer to a line; see `viq.bench.peer`."""
        print(kind, file=self._in, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        line = self._out.readline()
        if not line:
            raise ViqError("a library to compare with has ended; run bench/peers.sh again")
        return json.loads(line)


@contextmanager
def peer_process(
    name: str,
    python: Path,
    samples: Sequence[Codes],
    folder: Path,
    texts: Sequence[np.ndarray] = (),
) -> Iterator[Peer]:
    """A library with these samples, one image each, until the block ends.

    Args:
        folder: for its files; those of the samples are written there once for all.
        texts: text ids of each sample, int32, if they are to have any.
    """
    codes, out = folder / "codes.npz", folder / name
    if not codes.exists():
        more = {}
        if texts:
            ends = np.cumsum([len(text) for text in texts])
            more = {"text": np.concatenate(texts), "text_ends": ends}
        np.savez(
            codes,
            ids=np.concatenate([item.ids.ravel() for item in samples]),
            ends=np.cumsum([item.ids.size for item in samples]),
            sizes=np.array([item.size for item in samples]),
            allow_pickle=False,
            **more,
        )
    out.mkdir()
    command = [str(python), peer.__file__, name, str(codes), str(out)]
    with (folder / f"{name}.log").open("w") as log, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:  # fmt: skip
        try:
            yield Peer(process)
        finally:
            process.communicate()
