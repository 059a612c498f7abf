"""Read a run folder, finished or not: what `viq report` shows.

Runs are killed, copied while they train and edited, so whatever is missing or damaged is left out.
The layout of the folder is in `viq.train.monitor`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viq.core.types import ViqError
from viq.metrics.codebook import collapse_warning, crowded_levels, even_perplexity
from viq.metrics.run_log import CODES, GRIDS, LOG, SKIPPED, read_lines, read_recipe, stage_names
from viq.report.charts import Chart, bars, curve

_NOT_MEASURED = {"stage", "step", "steps", "seconds"}
# Title and unit of a measure; others are named after their key. Their order is that of the report,
# with what is not listed before the learning rate.
_NAMES = {
    "loss": ("Loss, weighted sum", ""),
    "psnr": ("PSNR", "dB"),
    "answer_accuracy": ("Answers right", "%"),
    "caption_accuracy": ("Captions matched", "%"),
    "code_perplexity": ("Perplexity of a batch", "codes"),
    "codes": ("Codes in a batch", ""),
    "learning_rate": ("Learning rate", ""),
    "gradient_norm": ("Gradient norm", ""),
    "patches_per_second": ("Speed", "patches/s"),
    "tokens_per_second": ("Speed", "tokens/s"),
}
_EXACT = {"learning_rate"}  # without noise, nothing to smooth


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as far as it came."""

    name: str
    log: list[dict[str, float]]  # the numbers of each line, by step
    codes: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    grids: list[tuple[int, Path]]  # step and picture, oldest first
    finished: bool

    @property
    def step(self) -> int:
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def steps(self) -> int:
        """Planned; 0 if the log does not say."""
        return int(self.log[-1].get("steps", 0)) if self.log else 0

    @property
    def seconds(self) -> float:
        """Of training, pauses left out: each line of the log has the time since the one before."""
        return sum(record.get("seconds", 0) for record in self.log)

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        if not self.log:
            return "not begun"
        if not self.steps:
            return "unfinished"
        done = 100 * self.step // self.steps  # rounded down: 100 is all
        return "trained, not saved" if done >= 100 else f"unfinished, {done}%"

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None if nothing is left or nobody can know."""
        if self.finished or not self.step or self.step >= self.steps:
            return None
        return self.seconds / self.step * (self.steps - self.step)

    @property
    def measures(self) -> list[str]:
        """Keys of the log that hold numbers, in the order of the report."""
        return in_order({key for record in self.log for key in record} - _NOT_MEASURED)

    def last(self, key: str) -> float | None:
        """The newest value of a measure, in its unit."""
        return next((value for _, value in reversed(self._series(key))), None)

    @property
    def warnings(self) -> list[str]:
        """What the newest code use says, or where in the past it said something."""
        if not self.codes:
            return []
        newest = self.codes[-1]
        if warning := collapse_warning(newest):
            return [f"Step {newest['step']:,}: {warning}."]
        past = [r["step"] for r in self.codes if collapse_warning(r)]
        if not past:
            return []
        return [f"Code use was low up to step {past[-1]:,}; it has recovered since."]

    def curves(self) -> list[Chart]:
        """Every measure of the log over the steps."""
        drawings = []
        for key in self.measures:
            steps, values = zip(*self._series(key), strict=True)
            drawings.append(curve(steps, values, *words(key), smooth=key not in _EXACT))
        return drawings

    def code_curves(self) -> list[Chart]:
        """Codebook hit, perplexity and entropy over the steps, with what even use would give."""
        if not self.codes:
            return []
        records, steps = self.codes, [record["step"] for record in self.codes]
        even = [even_perplexity(record["codes"], record["codebook"]) for record in records]

        def over_steps(values: list[float], ideal: list[float], *title: str) -> Chart:
            return curve(steps, values, *title, smooth=False, even=ideal)

        return [
            over_steps(
                [100 * record["share"] for record in records],
                [100 * e / record["codebook"] for e, record in zip(even, records, strict=True)],
                "Codebook hit",
                "%",
            ),
            over_steps([record["perplexity"] for record in records], even, "Perplexity", "codes"),
            over_steps(
                [math.log2(record["perplexity"]) for record in records],
                [math.log2(e) for e in even],
                "Entropy",
                "bits a code",
            ),
        ]

    def level_bars(self) -> list[Chart]:
        """How often each level of each FSQ dimension occurs in the newest record."""
        if not self.codes:
            return []
        crowded = {dim: level for dim, level, _ in crowded_levels(self.codes[-1])}
        return [
            bars(counts, f"Dimension {dim}", crowded.get(dim))
            for dim, counts in enumerate(self.codes[-1]["levels"])
        ]

    def _series(self, key: str) -> list[tuple[int, float]]:
        scale = 100 if words(key)[1] == "%" else 1
        return [(int(r["step"]), round(scale * r[key], 12)) for r in self.log if key in r]


@dataclass(frozen=True)
class Run:
    name: str
    recipe: Any  # None if there is none to read
    stages: list[Stage]


def read_run(folder: Path) -> Run:
    """A run folder, or the folder of one of its stages.

    Raises:
        ViqError: not a run: neither a recipe nor anything that a stage writes.
    """
    if not folder.is_dir():
        raise ViqError(f"{folder}: no such folder; give the folder that `viq train --out` made")
    recipe = read_recipe(folder)
    if _is_stage(folder):
        found = [folder]
    else:
        found = [path for path in folder.iterdir() if path.is_dir() and _is_stage(path)]
    if not found and recipe is None:
        raise ViqError(
            f"{folder}: not a run: no recipe.json and no stage with {LOG} in it; give the folder "
            "that `viq train --out` made"
        )
    planned = stage_names(recipe)
    here = {path.name: path for path in sorted(found, key=_begun)}
    names = [*planned, *(name for name in here if name not in planned)]
    return Run(folder.resolve().name, recipe, [_stage(n, here.get(n, folder / n)) for n in names])


def words(key: str) -> tuple[str, str]:
    """Title and unit of a measure."""
    kind, _, term = key.partition("/")
    plain = (f"{kind}: {term}" if term else kind).replace("_", " ")
    return _NAMES.get(key, (plain[:1].upper() + plain[1:], ""))


def in_order(keys: Iterable[str]) -> list[str]:
    """Measures, each once, in the order of the report."""
    known = list(_NAMES)

    def rank(key: str) -> tuple[float, str]:
        if key.startswith("loss/"):
            return 0.5, key
        return (known.index(key) if key in known else known.index("learning_rate") - 0.5), key

    return sorted(set(keys), key=rank)


def _stage(name: str, folder: Path) -> Stage:
    def steps_of(file: str) -> list[dict[str, Any]]:
        # Sorted, in case the log of a resumed run was not cut.
        lines = (line for line in read_lines(folder / file) if _is_number(line.get("step")))
        return sorted(lines, key=lambda line: line["step"])

    return Stage(
        name=name,
        log=[_renamed({k: v for k, v in x.items() if _is_number(v)}) for x in steps_of(LOG)],
        codes=[record for record in steps_of(CODES) if _is_code_use(record)],
        skipped=read_lines(folder / SKIPPED),
        grids=list(_grids(folder / GRIDS)),
        finished=any((folder / name / "config.json").exists() for name in ("model", "tower")),
    )


def _renamed(line: dict[str, float]) -> dict[str, float]:
    """A line of the log with today's names.

    Before there was a plain `mse`, the root mean squared error was called so in the decoder stage,
    and `reconstruction` in the others.
    """
    if "loss/rmse" in line:
        return line
    old = {"loss/reconstruction": "loss/rmse", "loss/mse": "loss/rmse"}
    return {old.get(key, key): value for key, value in line.items()}


def _grids(folder: Path) -> Iterator[tuple[int, Path]]:
    named = {path: re.fullmatch(r"step-(\d+)\.png", path.name) for path in folder.glob("*.png")}
    yield from sorted((int(match[1]), path) for path, match in named.items() if match)


def _is_stage(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LOG, CODES, SKIPPED, GRIDS))


def _begun(folder: Path) -> tuple[float, str]:
    """Stages run one after another, so the older log comes first."""
    log = folder / LOG
    return (log.stat().st_mtime if log.exists() else math.inf), folder.name


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_code_use(record: dict[str, Any]) -> bool:
    numbers = [record.get(key) for key in ("codes", "codebook", "share", "perplexity")]
    levels = record.get("levels")
    if not isinstance(levels, list) or not all(map(_is_number, numbers)):
        return False
    return (
        bool(levels)
        and all(isinstance(dim, list) and dim and all(map(_is_number, dim)) for dim in levels)
        and record["codes"] > 0
        and record["codebook"] > 1
        and record["perplexity"] > 0
    )
