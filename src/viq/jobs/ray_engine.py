"""`viq encode --engine ray`: the shards of a store, written by actors of a Ray Data job.

What is handed out are numbers of shards, not pictures: each actor holds the model, reads the inputs
of a shard itself and writes the shard whole, as the local engine does. So the store is the same
byte for byte, no picture goes through Ray's object store, and an actor that dies costs one shard.
All machines must see inputs, model and store at the same paths.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from viq.core.errors import require
from viq.core.remote import Location
from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.jobs.destination import begin_afresh, check_out
from viq.jobs.encode import encode_shards, plan, to_store
from viq.jobs.inputs import left_over, open_inputs, require_all
from viq.jobs.pipeline import EncodeOptions, Pipeline
from viq.jobs.summary import Summary
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import Extras
from viq.store.folder import Index
from viq.store.job import Counts, count_shards
from viq.store.remote_job import joined_job, open_job_at

_NEEDING = "--engine ray"
_BLOCKS = 64  # for each actor: few enough for Ray to plan, enough to share the work evenly


@dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """What an actor needs to write any shard.

    Attributes:
        model: as `viq.load` takes it.
        inputs, input_options: as `viq.jobs.inputs.open_inputs` takes them.
        index, extras: what the store is made with.
        threads: of each actor.
        cwd: what relative paths are relative to.
    """

    model: str
    dtype: torch.dtype
    inputs: Sequence[str]
    input_options: Mapping[str, Any]
    out: Location
    options: EncodeOptions
    retry_failed: bool
    strict: bool
    index: Index
    extras: Extras
    threads: int
    cwd: str


class ShardEncoder:
    """Held by one actor, with its model."""

    def __init__(self, recipe: EncodeSpec) -> None:
        os.chdir(recipe.cwd)
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray shows an actor its own GPU
        tokenizer = load(recipe.model, device=device, dtype=recipe.dtype)
        source = open_inputs(recipe.inputs, **recipe.input_options)
        self._pipeline = Pipeline(
            tokenizer, source, recipe.extras, recipe.options, recipe.threads, strict=recipe.strict
        )
        self._job = joined_job(recipe.out, recipe.index, recipe.extras)
        self._retry_failed = recipe.retry_failed

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Write a batch of one shard; gives its number and what was encoded for it."""
        (number,) = map(int, batch["shard"])
        self._job.look([number])
        counts = encode_shards(self._pipeline, self._job, [number], retry_failed=self._retry_failed)
        return {"shard": [number], **{name: [value] for name, value in asdict(counts).items()}}


def encode(
    tokenizer: VisualTokenizer,
    model: str,
    inputs: Sequence[str],
    input_options: Mapping[str, Any],
    source: Source,
    out: Location,
    options: EncodeOptions,
    *,
    actors: int | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Summary:
    """Encode into a store on the Ray cluster of RAY_ADDRESS, or on one that is started here.

    Args:
        tokenizer: `model`, loaded here; on any device.
        source: `inputs`, opened here.
        actors: how many hold the model; None for one a GPU, or one a CPU where there are none.
        progress: called once for every input.

    Raises:
        ViqError: Ray is not installed, or as `viq.jobs.encode.encode`.
    """
    start = time.perf_counter()
    if not check_out(out, len(source), overwrite):
        raise ViqError(f"-o {out}: the Ray engine writes stores; give a folder")
    if strict:
        require_all(source)
    index, extras = plan(tokenizer, source, options, strict)
    with require("ray", "ray", _NEEDING):  # before anything is removed
        if not find_spec("ray"):  # importing it would take a while
            raise ImportError
    if overwrite:
        begin_afresh(out)
    numbers = range(count_shards(index))
    with open_job_at(out, index, extras) as job:
        if options.compress:
            job.keep_entropy_model(tokenizer.entropy)

        def work() -> Counts:
            todo = [
                n for n in numbers
                if n not in job.whole or (retry_failed and job.whole[n].failures)
            ]  # fmt: skip
            counts = Counts()

            def advance(number: int) -> None:
                for _ in range(*job.inputs_of(number)):
                    progress()

            for number in set(numbers) - set(todo):
                advance(number)
            if not todo:
                return counts
            with _ray() as slots:
                size = min(actors or slots.actors, len(todo))
                recipe = EncodeSpec(
                    model=model, dtype=getattr(torch, tokenizer.dtype_name), inputs=inputs,
                    input_options=input_options, out=out, options=options,
                    retry_failed=retry_failed, strict=strict, index=index, extras=extras,
                    threads=slots.threads, cwd=os.getcwd(),
                )  # fmt: skip
                for row in _run(recipe, todo, size, slots):
                    number = row.pop("shard")
                    job.look([number])
                    advance(number)
                    counts.add(Counts(**row))
            return counts

        report = to_store(job, numbers, work)
    report.left_over = left_over(source, report)
    report.seconds = time.perf_counter() - start
    return report


@dataclass(frozen=True)
class _Slots:
    """How a cluster is cut into actors, and what each of them gets."""

    actors: int
    threads: int
    gpus: int


@contextmanager
def _ray() -> Iterator[_Slots]:
    """Ray, started or joined, with as little noise as it allows."""
    # Else Ray writes a token into the home folder, and warns of what does not concern us.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with require("ray", "ray", _NEEDING):
        import ray
    ours = not ray.is_initialized()
    if ours:
        on_term = signal.getsignal(signal.SIGTERM)
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        signal.signal(signal.SIGTERM, on_term)  # that of Ray aborts without putting anything away
    try:
        have = ray.cluster_resources()
        cpus, gpus = int(have.get("CPU", 1)), int(have.get("GPU", 0))
        yield _Slots(gpus, max(1, cpus // gpus), 1) if gpus else _Slots(max(1, cpus), 1, 0)
    finally:
        if ours:
            ray.shutdown()


def _run(recipe: EncodeSpec, numbers: list[int], actors: int, slots: _Slots) -> Iterator[dict]:
    """What `ShardEncoder` gives for each shard, in the order they are done."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray hands out blocks: one shard each, unless there are so many that planning them would cost.
    blocks = min(len(numbers), _BLOCKS * actors)
    shards = ray.data.from_items([{"shard": n} for n in numbers], override_num_blocks=blocks)
    done = shards.map_batches(
        ShardEncoder,
        fn_constructor_kwargs={"recipe": recipe},
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=slots.threads,
        num_gpus=slots.gpus,
    )
    try:
        yield from done.iter_rows()
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (ViqError, OSError)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or ViqError(f"Ray: {' '.join(str(error).split())[-300:]}") from error
