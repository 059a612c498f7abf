"""Inputs to codes: one image to a .viq file, many to a Parquet file, any number to a store.

One bad input never stops a job: it is listed with its reason and the rest goes on.
"""

from __future__ import annotations

import errno
import heapq
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from viq.data.source_base import Source
from viq.data.source_files import FileSource
from viq.data.sources import concatenate, open_source
from viq.files import write_atomically
from viq.models.tokenizer import VisualTokenizer
from viq.pipeline import Encoded, EncodeOptions, Pipeline, Task
from viq.ranks import ALONE, Place
from viq.report import Report
from viq.store.extras import Extras
from viq.store.folder import PARQUET, SINGLE, Index
from viq.store.job import (
    Counts,
    Failure,
    Job,
    ShardWriter,
    clear,
    count_shards,
    digest,
    open_job,
    write_ledger,
)
from viq.store.rows import StoreInfo
from viq.types import ViqError

_TYPED_BY = 1000  # first inputs, whose extra columns decide the types of all

Progress = Callable[[], None]


def open_inputs(specs: Sequence[str], **options: Any) -> Source:
    """One source of all inputs, in their order; see `open_source` for kinds and options.

    Files given twice, as themselves and through a folder, are there once.
    """
    sources = [open_source(spec, **options) for spec in specs]
    if len(sources) > 1 and all(isinstance(source, FileSource) for source in sources):
        return FileSource([Path(key) for source in sources for key in source.keys()])
    return concatenate(sources)


def encode(
    tokenizer: VisualTokenizer,
    source: Source,
    out: Path,
    options: EncodeOptions | None = None,
    *,
    workers: int | None = None,
    place: Place = ALONE,
    retry_failed: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda: None,
) -> Report:
    """Encode every input of `source`.

    Args:
        out: NAME.viq for one image; NAME.parquet, written in one go, with failed inputs in
            NAME.failures.jsonl; or a folder, which becomes a store, or is gone on with.
        place: of several processes that write one store together, which this is.
        retry_failed: of a store, try the inputs again that failed.
        progress: called for each input that is done, this time or in an earlier run.

    Raises:
        ViqError: `out` cannot be written: wrong suffix, exists, several images into one .viq,
            a store begun otherwise or held by another process, a full disk.
    """
    options = options or EncodeOptions()
    is_store = check_out(out, len(source), overwrite)
    if not is_store and (place.world > 1 or retry_failed):
        raise ViqError(f"-o {out}: only a folder is shared by ranks or gone on with; give a folder")
    if overwrite and place.world > 1:
        raise ViqError("--overwrite: one of several processes cannot; remove the folder first")
    start = time.perf_counter()
    index, extras = plan(tokenizer, source, options)
    pipeline = Pipeline(tokenizer, source, extras, options, workers)
    if not is_store:
        if options.compress:
            if out.suffix == SINGLE:
                raise ViqError(f"-o {out}: is never compressed: write NAME{PARQUET} instead")
            tokenizer.entropy.save_beside(out.parent)
        report = _to_file(pipeline, out, index, extras, progress)
    else:
        if overwrite and out.exists():
            clear(out)
        numbers = range(place.rank, count_shards(index), place.world)
        with open_job(out, index, extras, rank=place.rank, world=place.world) as job:
            if options.compress:
                tokenizer.entropy.save_beside(out)
            report = to_store(job, numbers, lambda: encode_shards(
                pipeline, job, numbers, retry_failed=retry_failed, progress=progress
            ))  # fmt: skip
    report.seconds = time.perf_counter() - start
    return report


def plan(
    tokenizer: VisualTokenizer, source: Source, options: EncodeOptions
) -> tuple[Index, Extras]:
    """What a store of `source` is made with. Goes once over all keys and the first rows."""
    samples = []
    for place in range(min(len(source), _TYPED_BY)):
        with suppress(ViqError):  # it will be met again, and listed
            samples.append(source[place].extras)
    extras = Extras.inferred(samples, unseen=source.has_extras and len(source) > _TYPED_BY)
    inputs, keys = digest(source.keys())
    index = Index(
        info=StoreInfo(
            model=tokenizer.config.name,
            fingerprint=tokenizer.fingerprint,
            levels=tokenizer.levels,
            entropy=tokenizer.entropy.stamp if options.compress else "",
            dtype=tokenizer.dtype_name,
        ),
        options=options.resolved(tokenizer),
        columns={f.name: str(f.type) for f in extras.fields},
        inputs=inputs,
        keys=keys,
    )
    return index, extras


def encode_shards(
    pipeline: Pipeline,
    job: Job,
    numbers: Sequence[int],
    *,
    retry_failed: bool = False,
    progress: Progress = lambda: None,
) -> Counts:
    """Write those of the shards `numbers` that are missing; gives what was encoded.

    Args:
        retry_failed: also write those anew, with what they hold, in which inputs had failed.
    """
    todo: dict[int, set[int] | None] = {}  # inputs to encode; None: all of the shard
    for number in numbers:
        if number not in job.whole:
            todo[number] = None
        elif retry_failed and job.whole[number].failures:
            todo[number] = {failure.input for failure in job.whole[number].failures}
    counts = Counts()

    def tasks() -> Iterator[Task]:
        for number in numbers:
            wanted = todo.get(number, ())
            for place in range(*job.inputs_of(number)):
                if wanted is None or place in wanted:
                    yield Task(number, place)
                else:
                    progress()

    def counted(encoded: Iterable[Encoded]) -> Iterator[Encoded]:
        for item in encoded:
            _count(counts, item)
            yield item
            progress()

    with closing(pipeline.run(tasks())) as encoded:
        for number, fresh in groupby(encoded, key=lambda item: item.task.shard):
            with job.writing(number) as shard:
                kept = _kept(job, number) if number in job.whole else ()
                _fill(shard, heapq.merge(kept, counted(fresh), key=lambda item: item.task.input))
    return counts


def to_store(job: Job, numbers: Sequence[int], work: Callable[[], Counts]) -> Report:
    """Let `work` write the shards `numbers`, and finish the store if no others are missing."""
    total = count_shards(job.index)

    def saved() -> str:
        job.look(number for number in range(total) if number not in job.whole)
        return f"{len(job.whole)} of {total} shards are whole: run the same command again to go on"

    with _stops_named(job.folder, saved):
        counts = work()
        index, missing = job.finish()
    failures = [failure for n in numbers for failure in job.whole[n].failures]
    return Report(
        **asdict(counts),
        failures=[asdict(failure) for failure in failures],
        outputs=[str(job.folder)],
        store={"shards": total, "missing": len(missing), **(index.totals if index else {})},
    )


def _to_file(
    pipeline: Pipeline, out: Path, index: Index, extras: Extras, progress: Progress
) -> Report:
    """Encode into one file. If every input fails, no file of codes is written."""
    report, failures = Report(), list[Failure]()
    tasks = (Task(0, place) for place in range(index.inputs))

    def counted(encoded: Iterable[Encoded]) -> Iterator[Encoded]:
        for item in encoded:
            _count(report, item)
            if item.reason:
                failures.append(_failure(item))
            yield item
            progress()

    saved = "nothing was written"
    with _stops_named(out, lambda: saved), closing(pipeline.run(tasks)) as encoded:
        if out.suffix == SINGLE:
            for item in counted(encoded):
                _write_single(out, item)
        else:
            facts = (0, index.inputs)
            with (
                suppress(_NothingToKeepError),
                ShardWriter(out, index.info, extras, index.options, facts) as shard,
            ):
                _fill(shard, counted(encoded))
                if not shard.facts.rows:
                    raise _NothingToKeepError
        ledger = out.with_name(f"{out.stem}.failures.jsonl")
        write_ledger(ledger, failures)
    report.failures = [asdict(failure) for failure in failures]
    report.outputs = [str(path) for path in (out, ledger) if path.exists()]
    return report


class _NothingToKeepError(Exception):
    pass


def _write_single(out: Path, item: Encoded) -> None:
    codes = [row.codes for row in item.rows if row.codes is not None]
    if not item.reason and len(codes) != 1:
        raise ViqError(
            f"-o {out}: holds one image, but {item.key} has {len(codes)}: write NAME"
            f"{PARQUET} instead"
        )
    for image in codes:
        write_atomically(out, image.to_bytes())


@contextmanager
def _stops_named(out: Path, saved: Callable[[], str]) -> Iterator[None]:
    """Say what there is when a full disk or an interrupt ends a job."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {saved()}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ViqError(f"-o {out}: the disk is full; {saved()}") from None


def check_out(out: Path, count: int, overwrite: bool) -> bool:
    """Whether `out` is to be a store. Raises ViqError if it cannot be written."""
    is_store = not out.suffix or out.is_dir()
    if not is_store and out.suffix not in (PARQUET, SINGLE):
        raise ViqError(
            f"-o {out}: give NAME{PARQUET}, NAME{SINGLE} for a single image, or a folder"
        )
    if out.suffix == SINGLE and count != 1:
        raise ViqError(f"-o {out}: holds one image, got {count}: write NAME{PARQUET} instead")
    if out.is_file() and (is_store or not overwrite):
        raise ViqError(f"-o {out}: exists; give another name, or --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):  # know now, not after an hour of encoding
            pass
    except OSError as error:
        raise ViqError(
            f"-o {out}: cannot be written ({error.strerror}); choose another place"
        ) from None
    return is_store


def _fill(shard: ShardWriter, encoded: Iterable[Encoded]) -> None:
    for item in encoded:
        if item.reason:
            shard.fail(_failure(item))
        else:
            shard.add(item.rows, item.shrunk)


def _kept(job: Job, number: int) -> Iterator[Encoded]:
    """What a shard holds already, as if it had just been encoded."""
    for place, rows in job.kept(number):
        yield Encoded(Task(number, place), rows[0].key, rows)


def _count(counts: Counts, item: Encoded) -> None:
    for row in item.rows:
        if row.codes is not None:
            counts.count(row.codes)
    counts.shrunk += item.shrunk


def _failure(item: Encoded) -> Failure:
    return Failure(item.task.input, item.key, item.reason)
