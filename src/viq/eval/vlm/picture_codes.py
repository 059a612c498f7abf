"""The pictures of a benchmark as codes, encoded once into a store that later runs read.

The store has an input a row of the benchmark, and is made in small shards: a run that asks the
first rows alone encodes no more than their shards, and a later one goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viq.core.codes import Codes
from viq.core.types import CodesError
from viq.data.sources.base import Row, Source
from viq.eval.vlm.models import Report
from viq.eval.vlm.tasks.base import Task
from viq.jobs.encode import encode_shards, plan
from viq.jobs.pipeline import EncodeOptions, Pipeline
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.facts import Facts
from viq.store.folder import shard_name
from viq.store.job import open_job, read_facts, read_job
from viq.store.rows import CodesReader

_SHARD = 64  # rows


class Pictures(Source):
    """The pictures of a task, a row of the benchmark each."""

    has_extras = False

    def __init__(self, task: Task, source: Source) -> None:
        self._task, self._source = task, source

    def __len__(self) -> int:
        return len(self._source)

    def keys(self) -> Iterator[str]:
        return (self.key(number) for number in range(len(self)))

    def key(self, index: int) -> str:
        return f"{self._task.name}/{index}"

    def where(self, index: int) -> str:
        return self._source.where(index)

    def _row(self, index: int) -> Row:
        row = self._source[index]
        return Row(key=self.key(index), images=self._task.images(row), where=row.where)


@dataclass(frozen=True)
class Encoded:
    """Codes of the pictures of a task.

    Attributes:
        codes: of each row, those of its pictures in order.
        failed: why a row has none.
    """

    codes: dict[int, tuple[Codes, ...]]
    failed: dict[int, str]

    def mean(self) -> float:
        """Codes of a picture, in the mean; 0 without pictures."""
        counts = [one.ids.size for group in self.codes.values() for one in group]
        return sum(counts) / len(counts) if counts else 0.0


def codes_of(
    pictures: Source,
    folder: Path,
    rows: int,
    *,
    fingerprint: str,
    max_pixels: int,
    tokenizer: Callable[[], VisualTokenizer],
    report: Report,
    what: str,
) -> Encoded:
    """Codes of the first `rows` rows, from the store in `folder` as far as it has them.

    Args:
        fingerprint: of the tokenizer that the codes have to be of; "" accepts all.
        tokenizer: loads it; called only if pictures are to be encoded.
        what: is encoded, for `report`.

    Raises:
        ViqError: the folder holds other things, or a damaged store.
    """
    numbers = range(-(-rows // _SHARD))
    if not all((folder / shard_name(number)).is_file() for number in numbers):
        _encode(tokenizer(), pictures, folder, numbers, max_pixels, report, what)
    found = Encoded({}, {})
    for number in numbers:
        _read(folder, number, fingerprint, found)
    return found


def _encode(
    model: VisualTokenizer,
    pictures: Source,
    folder: Path,
    numbers: range,
    max_pixels: int,
    report: Report,
    what: str,
) -> None:
    options = EncodeOptions(max_pixels=max_pixels, shard_size=_SHARD)
    index, extras = plan(model, pictures, options)
    pipeline = Pipeline(model, pictures, extras, options)
    total = min(len(pictures), len(numbers) * _SHARD)
    with open_job(folder, index, extras) as job, report(f"encoding {what}", total) as advance:
        encode_shards(pipeline, job, numbers, progress=advance)
        job.finish()


def _read(folder: Path, number: int, fingerprint: str, found: Encoded) -> None:
    """Add what a shard holds."""
    facts: Facts = read_facts(folder, number, read_job(folder))
    found.failed.update({failure.input: failure.reason for failure in facts.failures})
    with CodesReader(folder / shard_name(number)) as reader:
        if fingerprint and reader.info.fingerprint != fingerprint:
            raise CodesError(
                f"{folder}: holds codes of the tokenizer {reader.info.fingerprint}, but the model "
                f"reads those of {fingerprint}; give another --codes"
            )
        for row in reader.rows(columns=()):
            place = int(row.key.rpartition("/")[2])
            codes: Any = () if row.codes is None else (row.codes,)
            found.codes[place] = found.codes.get(place, ()) + codes
