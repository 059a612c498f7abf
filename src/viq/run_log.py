"""The files of a training run: its recipe, and the stages that the recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from viq.files import read_bytes
from viq.types import ViqError
from viq.untrusted import CONFIG_BYTES, UntrustedError, file_name, parse_json

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
