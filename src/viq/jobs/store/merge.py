"""Stores into one store, and a store into WebDataset tars: `viq store merge`, `export`."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from viq.codec.entropy_model import EntropyModel
from viq.core.files import written_aside
from viq.core.remote import Location, RemoteFolder, location
from viq.core.types import CodesError, ViqError
from viq.store.columns import Extras
from viq.store.folder import SINGLE, Index, Store
from viq.store.job import MERGED, SHARD_SIZE, count_shards, digest
from viq.store.remote_job import open_job_at
from viq.store.rows import CodeRow
from viq.store.schema import samples_of

TYPED_BY = 1000  # first samples of each store, which decide the types of extra columns


def merge(
    paths: Sequence[Location],
    out: Location,
    *,
    shard_size: int = 1000,
    entropy: EntropyModel | None = None,
    skip_duplicates: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the samples of stores, one after another, into a store; resumes if begun.

    One store alone is written anew: with other shards, compressed or not.

    Args:
        entropy: compresses the codes; None stores them plain.
        skip_duplicates: of samples with one key keep the first; else they are refused.
        progress: called for each shard that is done.

    Raises:
        ViqError: stores of different tokenizers, a key that is there twice, or as `open_job`.
    """
    stores, out = [Store(path) for path in paths], location(out)
    info = replace(stores[0].info, entropy=entropy.digest if entropy else "")
    for store in stores[1:]:
        if store.info.fingerprint != info.fingerprint:
            raise CodesError(
                f"{store.path}: codes of tokenizer {store.info.fingerprint}, but {stores[0].path} "
                f"has codes of {info.fingerprint}: encode one of them again"
            )
        if (store.info.refinement, store.info.meaning) != (info.refinement, info.meaning):
            raise CodesError(
                f"{store.path}: has other counts of codes than {stores[0].path}, or none (viq "
                "encode --bpp, --psnr, --nbytes): encode one of them again"
            )
        if store.info.dtype != info.dtype:
            raise CodesError(
                f"{store.path}: codes made in {store.info.dtype}, but {stores[0].path} has codes "
                f"made in {info.dtype}: encode one of them again"
            )
    keys, kept = _keys(stores, skip_duplicates)
    inputs, sequence = digest(keys)
    extras = Extras.inferred(
        [
            sample[0].extras
            for store in stores
            for sample in islice(samples_of(store.rows()), TYPED_BY)
        ]
    )
    wanted = Index(
        info=info,
        options={SHARD_SIZE: shard_size, MERGED: True},
        columns={f.name: str(f.type) for f in extras.fields},
        inputs=inputs,
        keys=sequence,
    )
    everything = chain.from_iterable(samples_of(store.rows()) for store in stores)
    samples = (sample for sample, keep in zip(everything, kept, strict=True) if keep)
    totals = write_samples(out, wanted, extras, samples, entropy, progress)
    return {"output": str(out), "skipped": len(kept) - inputs, **totals}


def write_samples(
    out: Location,
    wanted: Index,
    extras: Extras,
    samples: Iterator[Sequence[CodeRow]],
    entropy: EntropyModel | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Mapping[str, int]:
    """Write samples, one an input, into a store; resumes if begun. Gives the totals of its index.

    Args:
        wanted: what the store is made with; as many inputs as there are samples.
        progress: called for each shard that is done.

    Raises:
        ViqError: as `viq.store.job.open_job`.
    """
    with open_job_at(out, wanted, extras) as job:
        if entropy:
            job.keep_entropy_model(entropy)
        for number in range(count_shards(wanted)):
            first, last = job.inputs_of(number)
            rows = islice(samples, last - first)
            if number in job.whole:
                next(islice(rows, last - first, None), None)  # pass over them
            else:
                with job.writing(number) as shard:
                    for sample in rows:
                        shard.add([replace(r, extras=extras.pack(r.extras)) for r in sample])
            progress()
        index, _ = job.finish()
    assert index is not None
    return index.totals


def export_webdataset(
    path: Location,
    out: Location,
    *,
    shard_size: int = 10000,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write a store as WebDataset tars `out/NNNNNN.tar`, here or behind a URL, whole or absent.

    A sample is `NUMBER.json` (its key and extras) and `NUMBER.viq`, or `NUMBER.0.viq`,
    `NUMBER.1.viq`, .. for several images; `viq.Codes.from_bytes` reads them.

    Args:
        progress: called for each sample.

    Raises:
        ViqError: no finished store, or `out` holds other files.
    """
    store, out = Store(path), location(out)
    remote = RemoteFolder(out) if isinstance(out, str) else None
    if remote is not None:
        remote.require_writable()
    if remote.sizes(deep=True) if remote else _is_taken(Path(out)):
        raise ViqError(f"-o {out}: is not empty, or no folder; give a new folder")
    samples, number, tars = samples_of(store.rows()), 0, list[str]()
    while group := list(islice(samples, shard_size)):
        name = f"{len(tars):06d}.tar"
        tars.append(f"{out}/{name}")
        with (
            remote.put_when_whole(name) if remote else written_aside(Path(tars[-1])) as aside,
            tarfile.open(aside, "w") as tar,
        ):
            for sample in group:
                for name, data in _members(sample, number):
                    header = tarfile.TarInfo(name)  # time 0, so that equal stores give equal tars
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                number += 1
                progress()
    return {"samples": number, "tars": tars}


def _is_taken(out: Path) -> bool:
    return os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))


def _members(sample: Sequence[CodeRow], number: int) -> Iterator[tuple[str, bytes]]:
    """(file name, contents) of a sample."""
    about = {"key": sample[0].key, **sample[0].extras}
    yield f"{number:09d}.json", _json(about)
    for row in sample:
        if row.codes is not None:
            place = f".{row.image_index}" if len(sample) > 1 else ""
            yield f"{number:09d}{place}{SINGLE}", row.codes.to_bytes()


def _json(about: dict[str, Any]) -> bytes:
    text = json.dumps(about, default=str, ensure_ascii=False)
    return text.encode(errors="backslashreplace")  # half a character is \udXXX in JSON as well


def _keys(stores: Sequence[Store], skip_duplicates: bool) -> tuple[list[str], list[bool]]:
    """The keys that are kept, in order, and for every sample whether it is."""
    seen: set[str] = set()
    keys, kept = [], []
    for store in stores:
        for shard in store.shards:
            with store.reader(shard) as reader:
                for key, begins in zip(reader.keys(), reader.begins_sample(), strict=True):
                    if not begins:
                        continue
                    kept.append(key not in seen)
                    if kept[-1]:
                        keys.append(key)
                        seen.add(key)
                    elif not skip_duplicates:
                        raise CodesError(
                            f"{reader.path}: key {key!r} was there before; --skip-duplicates keeps "
                            "the first"
                        )
    return keys, kept
