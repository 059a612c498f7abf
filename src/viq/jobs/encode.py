"""Inputs to codes: one image to a .viq file, many to a Parquet file, any number to a store.

One bad input never stops a job: it is listed with its reason and the rest goes on.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from viq.core.files import write_atomically
from viq.core.process import ALONE, Place
from viq.core.remote import Location, location, suffix_of
from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.jobs.destination import begin_afresh, check_out, list_failures, stops_named
from viq.jobs.inputs import left_over, require_all
from viq.jobs.pipeline import Encoded, EncodeOptions, Pipeline, Task, Watch
from viq.jobs.summary import Summary
from viq.jobs.unfinished import Unfinished
from viq.models.tokenizer.counted import parts_of, refinement_digest
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import Extras
from viq.store.folder import PARQUET, SINGLE, Index
from viq.store.job import (
    Counts,
    Failure,
    Job,
    ShardWriter,
    count_shards,
    digest,
)
from viq.store.remote_job import open_job_at
from viq.store.rows import StoreInfo

_TYPED_BY = 1000  # first inputs, whose extra columns decide the types of all

_AGAIN = "run the same command again to go on, without --overwrite"

Progress = Callable[[], None]


def encode(
    tokenizer: VisualTokenizer,
    source: Source,
    out: Location,
    options: EncodeOptions | None = None,
    *,
    workers: int | None = None,
    place: Place = ALONE,
    retry_failed: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: Progress = lambda: None,
    watch: Watch | None = None,
) -> Summary:
    """Encode every input of `source`.

    Args:
        out: NAME.viq for one image; NAME.parquet, which appears when it is whole, with failed
            inputs in NAME.failures.jsonl (of NAME.viq beside a NAME.parquet, in
            NAME-viq.failures.jsonl); or a folder, here or behind a URL (s3://, gs://, ..), which
            becomes a store. Store and file are gone on with if they were begun.
        place: of several processes that write one store together, which this is.
        retry_failed: of a store, try the inputs again that failed.
        overwrite: replace the file, or the store, that is there; a store of codes, that is, and
            no other folder. Begins afresh; without it the job is gone on with, and it still
            replaces the file.
        strict: whether what `source` leaves over is an error, and a row without an image a failure.
        progress: called for each input that is done, this time or in an earlier run.
        watch: is told of pixels, from the threads that encode.

    Raises:
        ViqError: `out` cannot be written: wrong suffix, exists, several images into one .viq,
            begun otherwise or held by another process, a full disk; or `strict` is not met.
        KeyboardInterrupt: with a line that says what is kept for the same call again.
    """
    options, out = options or EncodeOptions(), location(out)
    is_store = check_out(out, len(source), overwrite)
    if not is_store and (place.world > 1 or retry_failed):
        raise ViqError(f"-o {out}: ranks and --retry-failed work on stores; give a folder")
    if overwrite and place.world > 1:
        raise ViqError("--overwrite: one of several processes cannot; remove the folder first")
    if options.compress and suffix_of(out) == SINGLE:
        raise ViqError(f"-o {out}: is never compressed: write NAME{PARQUET} instead")
    start = time.perf_counter()
    if strict:
        require_all(source)
    index, extras = plan(tokenizer, source, options, strict)
    pipeline = Pipeline(tokenizer, source, extras, options, workers, watch, strict)
    if is_store:
        if overwrite:
            begin_afresh(out)
        numbers = range(place.rank, count_shards(index), place.world)
        with open_job_at(out, index, extras, rank=place.rank, world=place.world) as job:
            if options.compress:
                job.keep_entropy_model(tokenizer.entropy)
            report = to_store(job, numbers, lambda: encode_shards(
                pipeline, job, numbers, retry_failed=retry_failed, progress=progress
            ))  # fmt: skip
    elif Path(out).suffix == SINGLE:
        report = _to_single(pipeline, Path(out), progress)
    else:
        if options.compress:
            tokenizer.entropy.save_beside(Path(out).parent)
        report = _to_file(pipeline, Path(out), index, extras, overwrite, progress)
    report.left_over = left_over(source, report)
    report.seconds = time.perf_counter() - start
    return report


def plan(
    tokenizer: VisualTokenizer, source: Source, options: EncodeOptions, strict: bool = False
) -> tuple[Index, Extras]:
    """What a store of `source` is made with. Goes once over all keys and the first rows."""
    samples = []
    for place in range(min(len(source), _TYPED_BY) if source.has_extras else 0):
        with suppress(Exception):  # it will be met again, and listed
            samples.append(source[place].extras)
    extras = Extras.inferred(samples, unseen=source.has_extras and len(source) > _TYPED_BY)
    inputs, keys = digest(source.keys())
    index = Index(
        info=StoreInfo(
            model=tokenizer.config.name,
            fingerprint=tokenizer.fingerprint,
            levels=tokenizer.levels,
            entropy=tokenizer.entropy.digest if options.compress else "",
            dtype=tokenizer.dtype_name,
            **counted_facts(tokenizer, options.rate),
        ),
        options=options.resolved(tokenizer) | ({"strict": True} if strict else {}),
        columns={f.name: str(f.type) for f in extras.fields},
        inputs=inputs,
        keys=keys,
    )
    return index, extras


def counted_facts(tokenizer: VisualTokenizer, rate: Mapping[str, float]) -> dict[str, Any]:
    """What a store says of its counts, if a rate was asked for.

    Raises:
        ViqError: the tokenizer has no refinement.
    """
    if not rate:
        return {}
    quantizer, _ = parts_of(tokenizer)
    return {
        "refinement": refinement_digest(tokenizer),
        "meaning": quantizer.code.config.shares,
    }


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


def to_store(job: Job, numbers: Sequence[int], work: Callable[[], Counts]) -> Summary:
    """Let `work` write the shards `numbers`, and finish the store if no others are missing."""
    total = count_shards(job.index)

    def saved() -> str:
        job.look(number for number in range(total) if number not in job.whole)
        return f"{len(job.whole)} of {total} shards are whole: {_AGAIN}"

    with stops_named(job.where, saved):
        counts = work()
        index, missing = job.finish()
    failures = [failure for n in numbers for failure in job.whole[n].failures]
    return Summary(
        **asdict(counts),
        failures=[asdict(failure) for failure in failures],
        outputs=[job.where],
        no_image=sum(job.whole[n].rows - job.whole[n].images for n in numbers),
        store={"shards": total, "missing": len(missing), **(index.totals if index else {})},
    )


def _to_file(
    pipeline: Pipeline,
    out: Path,
    index: Index,
    extras: Extras,
    overwrite: bool,
    progress: Progress,
) -> Summary:
    """Encode into one file. If every input fails, no file of codes is written.

    What an interrupted run had finished comes from `Unfinished`, so the bytes are those of a run
    that nobody interrupted.
    """
    report, failures, written = Summary(), list[Failure](), list[Path]()

    def fresh(encoded: Iterable[Encoded]) -> Iterator[Encoded]:
        for item in encoded:
            _count(report, item)
            unfinished.add(item)
            yield item

    def all_of(encoded: Iterable[Encoded]) -> Iterator[Encoded]:
        for item in chain(unfinished.inputs(), fresh(encoded)):
            if item.reason:
                failures.append(_failure(item))
            yield item
            progress()

    def saved() -> str:
        unfinished.flush()
        done = f"{unfinished.done} of {index.inputs} inputs are kept"
        return f"{done}: {_AGAIN}" if unfinished.done else "nothing done"

    finished, unfinished = False, Unfinished(out, index, extras, overwrite)
    try:
        report.resumed = unfinished.done
        tasks = (Task(0, place) for place in range(unfinished.done, index.inputs))
        with stops_named(out, saved), closing(pipeline.run(tasks)) as encoded:
            facts = (0, index.inputs)
            with (
                suppress(_NothingToKeepError),
                ShardWriter(out, index.info, extras, index.options, facts) as shard,
            ):
                _fill(shard, all_of(encoded))
                if not shard.facts.rows:
                    raise _NothingToKeepError
                written.append(out)
                report.no_image = shard.facts.rows - shard.facts.images
            written += list_failures(out, failures)
        finished = True
    finally:
        unfinished.close(finished=finished)
    report.kept = [str(out)] if out not in written and out.exists() else []
    return _listed(report, failures, written)


def _to_single(pipeline: Pipeline, out: Path, progress: Progress) -> Summary:
    """Encode one image into a .viq file."""
    report, failures, written = Summary(), list[Failure](), list[Path]()
    with stops_named(out, lambda: "nothing was written"):
        with closing(pipeline.run([Task(0, 0)])) as encoded:
            for item in encoded:
                _count(report, item)
                failures += [_failure(item)] if item.reason else []
                written += _write_single(out, item)
                progress()
        written += list_failures(out, failures)
    report.kept = [str(out)] if out not in written and out.exists() else []
    return _listed(report, failures, written)


def _listed(report: Summary, failures: Sequence[Failure], written: Sequence[Path]) -> Summary:
    report.failures = [asdict(failure) for failure in failures]
    report.outputs = [str(path) for path in written]
    return report


class _NothingToKeepError(Exception):
    pass


def _write_single(out: Path, item: Encoded) -> list[Path]:
    codes = [row.codes for row in item.rows if row.codes is not None]
    if not item.reason and len(codes) != 1:
        raise ViqError(
            f"-o {out}: holds one image, but {item.key} has {len(codes)}: write NAME"
            f"{PARQUET} instead"
        )
    for image in codes:
        write_atomically(out, image.to_bytes())
    return [out] if codes else []


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
