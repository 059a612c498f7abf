"""The files of a training run: its recipe, the stages that it names, and its lines of figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from viq.core.files import read_bytes
from viq.core.types import ViqError
from viq.core.untrusted import CONFIG_BYTES, UntrustedError, file_name, parse_json

RECIPE = "recipe.json"


def read_recipe(run: Path) -> Any:
    """The recipe of a run folder, parsed; None if there is none that can be read."""
    try:
        return parse_json(read_bytes(run / RECIPE, CONFIG_BYTES), str(run / RECIPE))
    except (OSError, ViqError):
        return None


def stage_names(recipe: Any) -> list[str]:
    """The stages of a parsed recipe, each once, as far as they are names of folders in a run."""
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    names = dict[str, None]()
    for stage in stages if isinstance(stages, list) else ():
        try:
            names[file_name(stage.get("name"), RECIPE)] = None
        except (UntrustedError, AttributeError):  # a run folder may come from anybody
            continue
    return list(names)


LOG, CODES, SKIPPED, GRIDS = "log.jsonl", "codes.jsonl", "skipped.jsonl", "grids"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; none if there is no file.

    A line that was torn when a run was killed is left out.
    """
    return [record for _, record in _parsed(path)]


def _parsed(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and line.endswith(b"\n"):
            yield line, record


def clock(seconds: float) -> str:
    """A time in the two units that matter: 45 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    for unit, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {small}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
