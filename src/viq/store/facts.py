"""What a shard says of itself: counts, and inputs that failed; and the ledger that lists these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viq.core.codes import Codes
from viq.core.files import open_regular, write_atomically
from viq.core.types import ViqError
from viq.core.untrusted import parse_json, whole_number

_LEDGER_LINE = 1 << 24  # bytes of a line


@dataclass(frozen=True)
class Failure:
    """An input that gave no codes: its number, its key, and one line that says why."""

    input: int
    key: str
    reason: str


@dataclass(kw_only=True)
class Counts:
    """How much there is.

    Attributes:
        shrunk: images made smaller because of max_pixels.
        tiled: images encoded in tiles.
    """

    images: int = 0
    pixels: int = 0
    codes: int = 0
    shrunk: int = 0
    tiled: int = 0

    def count(self, codes: Codes) -> None:
        """Count one image."""
        self.images += 1
        self.pixels += codes.size[0] * codes.size[1]
        self.codes += codes.total
        self.tiled += codes.tile > 0

    def add(self, others: Counts) -> None:
        """Count what others counted."""
        for name in ("images", "pixels", "codes", "shrunk", "tiled"):
            setattr(self, name, getattr(self, name) + getattr(others, name))


@dataclass(kw_only=True)
class Facts(Counts):
    """What a shard says of itself.

    Attributes:
        inputs: the half-open range of inputs it is made of.
        rows: images, and inputs without images.
    """

    inputs: tuple[int, int] = (0, 0)
    rows: int = 0
    failures: list[Failure] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Facts:
        """Read what `to_json` wrote. Raises TypeError, KeyError or ValueError for else."""
        values = dict(values)
        start, stop = (whole_number(place, "inputs") for place in values.pop("inputs"))
        failures = [Failure(**failure) for failure in values.pop("failures")]
        for failure in failures:
            whole_number(failure.input, "failures", start, stop - 1)
            if not isinstance(failure.key, str) or not isinstance(failure.reason, str):
                raise TypeError("a failure without key or reason")
        counts = {name: whole_number(value, name) for name, value in values.items()}
        return cls(inputs=(start, stop), failures=failures, **counts)


def write_ledger(path: Path, failures: Iterable[Failure]) -> None:
    """List failed inputs, one JSON object a line; no file if there are none.

    Raises:
        ViqError: there is a file that is no such list.
    """
    require_ledger(path)
    lines = failure_lines(failures)
    if lines:
        write_atomically(path, lines)
    else:
        path.unlink(missing_ok=True)  # a list of ours, as was just seen


def failure_lines(failures: Iterable[Failure]) -> bytes:
    """Failed inputs, one JSON object a line."""
    return "".join(json.dumps(asdict(failure)) + "\n" for failure in failures).encode()


def is_ledger(data: bytes) -> bool:
    """Whether these bytes are such lines."""
    try:
        listed = [_is_failure(line, "") for line in data.splitlines()]
    except ViqError:
        return False
    return bool(listed) and all(listed)


def require_ledger(path: Path) -> None:
    """Refuse to replace a file that is no list of failures.

    Raises:
        ViqError: there is one, or a link; names it.
    """
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            lines = iter(lambda: file.readline(_LEDGER_LINE), b"")
            listed = [_is_failure(line, str(path)) for line in lines]
    except (OSError, ViqError):
        listed = []
    if not listed or not all(listed) or path.is_symlink():
        raise ViqError(
            f"{path}: exists and is no list of failures that viq wrote: move it away, or give "
            "another -o"
        )


def _is_failure(line: bytes, where: str) -> bool:
    value = parse_json(line, where)
    return isinstance(value, dict) and value.keys() == {"input", "key", "reason"}
