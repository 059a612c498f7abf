"""How time and memory grow with pixels, samples and tokens: what `viq bench growth` prints.

Everything that is measured runs in a fresh process, so that its peak of memory is its own. Times
are seconds of processors, not of the clock, without the start of the process: another program on
the machine counts little. Sizes are gone through in turn, and medians are given.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from viq.bench.encode import four_to_three, picture
from viq.bench.setting import chosen_sections
from viq.core.codes import Codes
from viq.core.measure import machine, peak_memory
from viq.core.types import grid_of
from viq.jobs.store.lint import lint
from viq.jobs.store.merge import merge, write_samples
from viq.jobs.store.near_duplicates import by_overlap
from viq.jobs.store.stats import stats
from viq.models.language.packed import packed_hidden, use_packed_attention
from viq.models.language.vision_language import LanguageConfig, build_language
from viq.models.tokenizer.loading import load
from viq.store.columns import Extras
from viq.store.dataset import CodeDataset
from viq.store.folder import Index
from viq.store.job import MERGED, SHARD_SIZE, digest
from viq.store.rows import CodeRow, StoreInfo

_LONG = 10  # seconds; what takes longer is measured once
_SIDES = (64, 129)  # px, of the pictures of a store, least and one above the greatest
_TWINS = 100  # of so many samples one is that before it with a row replaced
_SHARD = 10_000
_INFO = StoreInfo(model="drawn", fingerprint="0123456789abcdef", levels=(8, 8, 8, 5, 5, 5))
_CONVERSATION = 128  # tokens
_GRID = (32, 32)  # patches of the images whose features are made


@dataclass(frozen=True, kw_only=True)
class GrowthWorkload:
    """Sizes, each list in rising order."""

    megapixels: tuple[float, ...] = (1, 4, 16, 64)
    samples: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    tokens: tuple[int, ...] = (1024, 4096, 16384)


FULL = GrowthWorkload()
QUICK = GrowthWorkload(megapixels=(0.25, 1), samples=(100, 1000), tokens=(256, 1024))


@dataclass(frozen=True, kw_only=True)
class _Setting:
    model: str
    work: GrowthWorkload
    repeats: int
    folder: Path


def run(
    model: str,
    *,
    repeats: int = 3,
    quick: bool = False,
    work: GrowthWorkload | None = None,
    sections: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure how costs grow; the result is for `json.dumps` and `growth_tables`.

    Args:
        model: name or folder of the tokenizer, as `viq.load` takes it.
        repeats: runs of each size; what takes more than ten seconds of a processor is run once.
        quick: small sizes.
        work: instead of the usual sizes.
        sections: names of `SECTIONS`; None runs all.
        progress: called with the name of each section before it starts.

    Returns:
        By section and what is done, a list of sizes: `size`, `median_s`, `min_s`, `max_s`, `runs`,
        and `peak_mib` of the process, None where the system does not tell.
    """
    chosen = chosen_sections(SECTIONS, sections, progress)
    result: dict[str, Any] = {"benchmark": "growth", "model": model, "machine": machine()}
    for name, section in chosen:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = section(
                _Setting(
                    model=model,
                    work=work or (QUICK if quick else FULL),
                    repeats=repeats,
                    folder=Path(folder),
                )
            )
    return result


Job = Callable[[], dict[str, float | None]]  # seconds and peak_mib of one run


def _grown(jobs: Mapping[Any, Job], repeats: int) -> list[dict[str, Any]]:
    """The costs of jobs by their size."""
    costs: dict[float, list[dict[str, Any]]] = {size: [] for size in jobs}
    for _ in range(repeats):
        for size, job in jobs.items():
            if not costs[size] or costs[size][0]["seconds"] < _LONG:
                costs[size].append(job())
    rows = []
    for size, found in costs.items():
        seconds = [cost["seconds"] for cost in found]
        peaks = [cost["peak_mib"] for cost in found if cost["peak_mib"] is not None]
        rows.append(
            {
                "size": size, "runs": len(found), "median_s": statistics.median(seconds),
                "min_s": min(seconds), "max_s": max(seconds), "peak_mib": max(peaks, default=None),
            }
        )  # fmt: skip
    return rows


def _in_fresh_process(
    folder: Path, work: Callable[..., None], *arguments: Any
) -> dict[str, float | None]:
    """Run a function of this module, whose first argument is where it writes its seconds."""
    out = folder / "seconds"
    peak = peak_memory(work, str(out), *arguments)
    return {"seconds": float(out.read_text()), "peak_mib": peak}


@contextmanager
def _clocked(out: str) -> Iterator[None]:
    """Note the seconds of the block."""
    begun = time.process_time()
    yield
    Path(out).write_text(str(time.process_time() - begun))


# Pixels


def _pixels(s: _Setting) -> dict[str, Any]:
    files = {}
    tokenizer = load(s.model)
    for megapixels in s.work.megapixels:
        files[megapixels] = s.folder / f"{megapixels}.viq"
        (codes,) = tokenizer.encode(picture(four_to_three(megapixels)))
        files[megapixels].write_bytes(codes.to_bytes())
    del tokenizer
    run = partial(_in_fresh_process, s.folder)
    return {
        "encode": _grown({mp: partial(run, encoding, s.model, mp) for mp in files}, s.repeats),
        "decode": _grown(
            {mp: partial(run, decoding, s.model, str(file)) for mp, file in files.items()},
            s.repeats,
        ),
    }


def encoding(out: str, model: str, megapixels: float) -> None:
    """A picture of so many megapixels to codes."""
    tokenizer, image = load(model), picture(four_to_three(megapixels))
    tokenizer.encode(picture((64, 64)))  # what is made once
    with _clocked(out):
        tokenizer.encode(image)


def decoding(out: str, model: str, file: str) -> None:
    """Codes of a file to a picture."""
    tokenizer, codes = load(model), Codes.from_bytes(Path(file).read_bytes())
    tokenizer.decode(tokenizer.encode(picture((64, 64))))
    with _clocked(out):
        tokenizer.decode([codes])


# Samples


def _samples(s: _Setting) -> dict[str, Any]:
    stores = {count: str(s.folder / f"store{count}") for count in s.work.samples}
    run = partial(_in_fresh_process, s.folder)
    writing = {count: partial(run, write_drawn, count, store) for count, store in stores.items()}
    result = {"write": _grown(writing, 1)}

    def with_scratch(name: str, store: str) -> dict[str, float | None]:
        scratch = s.folder / "scratch"
        try:
            return run(on_store, name, store, str(scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # in our own folder, of the job just run

    for name in STORE_JOBS:
        jobs = {count: partial(with_scratch, name, store) for count, store in stores.items()}
        result[name] = _grown(jobs, s.repeats)
    return result


def drawn(count: int) -> Iterator[list[CodeRow]]:
    """Samples of one picture of 64 to 128 px a side each, codes drawn at random."""
    draw, most = np.random.default_rng(0), int(np.prod(_INFO.levels))
    size, ids = (0, 0), np.empty(0)
    for number in range(count):
        if number % _TWINS == 1:
            ids = ids.copy()
            ids[0] = draw.integers(0, most, ids.shape[1:])
        else:
            height, width = draw.integers(*_SIDES, 2).tolist()
            size = (height, width)
            ids = draw.integers(0, most, (*grid_of(size), 4)).astype(np.uint16)
        yield [CodeRow(_key(number), Codes(ids, size, 0, _INFO.fingerprint), 0, {})]


def _key(number: int) -> str:
    return f"images/{number:08d}.jpg"


def write_drawn(out: str, count: int, store: str) -> None:
    """A store of drawn samples."""
    import pyarrow.parquet  # noqa: F401  # as in `on_store`

    inputs, keys = digest(map(_key, range(count)))
    options = {SHARD_SIZE: _SHARD, MERGED: True}
    wanted = Index(info=_INFO, options=options, inputs=inputs, keys=keys)
    with _clocked(out):
        write_samples(Path(store), wanted, Extras([]), drawn(count))


def on_store(out: str, name: str, store: str, scratch: str) -> None:
    """One of `STORE_JOBS` on a store; what it writes goes into a new folder."""
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401  # they are loaded when they are needed, and that is start

    with _clocked(out):
        STORE_JOBS[name](Path(store), Path(scratch))


def _merged(store: Path, scratch: Path) -> None:
    merge([store], scratch, shard_size=_SHARD)


def _batches(store: Path, scratch: Path) -> None:
    data = CodeDataset(store, shuffle=0, cache=scratch)
    for _ in data.batches(tokens=8192, packed=True):
        pass


STORE_JOBS: dict[str, Callable[[Path, Path], Any]] = {
    "lint": lambda store, _: lint(store),
    "stats": lambda store, _: stats(store),
    "merge": _merged,
    "near-duplicates": lambda store, _: by_overlap(store),
    "batches": _batches,
}


# Tokens


def _tokens(s: _Setting) -> dict[str, Any]:
    run = partial(_in_fresh_process, s.folder)
    sizes = s.work.tokens
    return {
        "features of codes": _grown(
            {n: partial(run, embedding, s.model, n) for n in sizes}, s.repeats
        ),
        "step, texts of 128": _grown(
            {n: partial(run, reading, [_CONVERSATION] * (n // _CONVERSATION)) for n in sizes},
            s.repeats,
        ),
        "step, one text": _grown({n: partial(run, reading, [n]) for n in sizes}, s.repeats),
    }


def embedding(out: str, model: str, tokens: int) -> None:
    """Codes of images of 32x32 patches, or one of fewer, to features."""
    tokenizer = load(model)
    rows, cols = _GRID if tokens >= _GRID[0] * _GRID[1] else (1, tokens)
    size = (16 * rows, 16 * cols)
    (codes,) = tokenizer.encode(picture(size))
    tokenizer.embed([codes])
    with _clocked(out):
        tokenizer.embed([codes] * (tokens // (codes.grid[0] * codes.grid[1])))


def reading(out: str, lengths: Sequence[int]) -> None:
    """Forward and backward pass of a small language model on packed conversations."""
    torch.manual_seed(0)
    config = LanguageConfig()
    language = build_language(config, config.vocabulary)
    use_packed_attention(language)

    def step(lengths: Sequence[int]) -> None:
        ids_L = torch.randint(config.vocabulary, (sum(lengths),))
        hidden_LD = packed_hidden(language, language.get_input_embeddings()(ids_L), lengths)
        loss = F.cross_entropy(language.get_output_embeddings()(hidden_LD), ids_L)
        loss.backward()

    step([_CONVERSATION])
    with _clocked(out):
        step(lengths)


SECTIONS: dict[str, Callable[[_Setting], dict[str, Any]]] = {
    "pixels": _pixels,
    "samples": _samples,
    "tokens": _tokens,
}
