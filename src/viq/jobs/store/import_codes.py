"""Codes that lie in other files, into a store: `viq store import`.

- `.viq` files, which say all there is to say of an image;
- `.npy`: ids of one image, (rows, cols, 4), or of several of one size, (n, rows, cols, 4);
- `.npz`: such arrays as `ids` or `codes`, and perhaps `size`, height and width in px;
- `.tar` of WebDataset with members of these kinds; of a sample, `.json` is what rides along, and in
  it `key`, if there is one, its key. So what `viq store export --webdataset` wrote comes back.

Where nothing says the size of an image it is that of its patches, a multiple of 16 px.
"""

from __future__ import annotations

import io
import math
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from viq.core.codes import Codes
from viq.core.files import open_regular, read_bytes
from viq.core.levels import codebook_size
from viq.core.remote import Location, location
from viq.core.types import (
    CODES_PER_PATCH,
    MAX_PATCHES,
    PATCH_SIZE,
    CodesError,
    ViqError,
    grid_of,
)
from viq.core.untrusted import parse_json
from viq.jobs.store.merge import TYPED_BY, write_samples
from viq.store.columns import Extras
from viq.store.folder import SINGLE, Index, StoreInfo
from viq.store.job import MERGED, SHARD_SIZE, digest
from viq.store.rows import CodeRow

_KINDS = (SINGLE, ".npy", ".npz")
_FILE_BYTES = 1 << 31  # of a file, or of a member of an archive, unpacked
_JSON_BYTES = 64 << 20
_MEMBER = re.compile(r"(?P<stem>(?:.*/)?[^./][^./]*)(?P<place>\.\d+)?(?P<kind>\.[^./]+)")


def import_codes(
    paths: Sequence[Path],
    out: Location,
    info: StoreInfo,
    *,
    shard_size: int = 1000,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the codes of files into a store, in the order of the files; resumes if begun.

    Args:
        paths: files of the kinds above, and folders of them at any depth.
        info: the tokenizer that made the codes; of `.viq` files it must be the same.
        progress: called for each shard that is done.

    Raises:
        ViqError: a file is of another kind, damaged, or of another tokenizer; or as `open_job`.
    """
    out = location(out)
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ViqError(f"{paths[0]}: holds no {', '.join(_KINDS)} or .tar file; check the path")

    def samples() -> Iterator[Sequence[CodeRow]]:
        return (_checked(sample, info) for file in files for sample in _samples(file, info))

    keys = [sample[0].key for sample in samples()]
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ViqError(f"key {key!r} is there twice; import the files into stores of their own")
        seen.add(key)
    inputs, sequence = digest(keys)
    extras = Extras.inferred([sample[0].extras for sample in islice(samples(), TYPED_BY)])
    wanted = Index(
        info=_as_counted(info, next(samples(), ())),
        options={SHARD_SIZE: shard_size, MERGED: True},
        columns={f.name: str(f.type) for f in extras.fields},
        inputs=inputs,
        keys=sequence,
    )
    return {"output": str(out), **write_samples(out, wanted, extras, samples(), progress=progress)}


def _as_counted(info: StoreInfo, sample: Sequence[CodeRow]) -> StoreInfo:
    """With the counts that the codes of the first sample have: a store is all with or without."""
    codes = next((row.codes for row in sample if row.codes is not None), None)
    if codes is None or codes.counts is None:
        return info
    return replace(info, refinement=codes.refinement, meaning=codes.meaning)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in (*_KINDS, ".tar"))
        return [p for p in found if not any(x.startswith(".") for x in p.relative_to(path).parts)]
    if path.suffix not in (*_KINDS, ".tar"):
        raise ViqError(f"{path}: give {', '.join(_KINDS)} or .tar files, or folders of them")
    return [path]


def _samples(path: Path, info: StoreInfo) -> Iterator[Sequence[CodeRow]]:
    try:
        if path.suffix == ".tar":
            yield from _tar(path, info)
            return
        images = _images(read_bytes(path, _FILE_BYTES), path.suffix, info)
        key = path.with_suffix("").as_posix()
        for number, codes in enumerate(images):
            yield [CodeRow(f"{key}:{number}" if len(images) > 1 else key, codes)]
    except FileNotFoundError:
        raise CodesError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:  # damage
        if str(error).startswith(str(path)):
            raise
        raise CodesError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _tar(path: Path, info: StoreInfo) -> Iterator[Sequence[CodeRow]]:
    with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        named = ((_MEMBER.fullmatch(m.name), m) for m in tar if m.isfile())
        known = ((match, m) for match, m in named if match and match["kind"] in (*_KINDS, ".json"))
        for stem, members in groupby(known, key=lambda pair: pair[0]["stem"]):
            images, extras = list[Codes](), dict[str, Any]()
            for match, member in members:
                limit = _JSON_BYTES if match["kind"] == ".json" else _FILE_BYTES
                if member.size > limit:
                    raise CodesError(f"{member.name!r} has more than {limit:,} bytes")
                content = tar.extractfile(member)
                data = content.read() if content else b""
                if match["kind"] == ".json":
                    extras = _object(data, member.name)
                else:
                    images += _images(data, match["kind"], info)
            key = str(extras.pop("key", f"{path.with_suffix('').as_posix()}/{stem}"))
            yield [
                CodeRow(key, codes, place, extras) for place, codes in enumerate(images or [None])
            ]


def _object(data: bytes, name: str) -> dict[str, Any]:
    value = parse_json(data, name)
    if not isinstance(value, dict):
        raise CodesError(f"{name!r} is no JSON object")
    return value


def _images(data: bytes, kind: str, info: StoreInfo) -> list[Codes]:
    if kind == SINGLE:
        return [Codes.from_bytes(data)]
    size = None
    if kind == ".npz":
        ids, size = _of_npz(data)
    else:
        ids = _array(data)
    if ids.ndim not in (3, 4) or ids.shape[-1] != CODES_PER_PATCH or ids.dtype.kind not in "iu":
        raise CodesError(
            f"an array {ids.shape} of {ids.dtype}; codes are whole numbers, (rows, cols, 4) or "
            "(n, rows, cols, 4)"
        )
    images = ids if ids.ndim == 4 else ids[None]
    rows, cols = images.shape[1:3]
    if not 0 < rows * cols <= MAX_PATCHES:
        raise CodesError(f"{rows}x{cols} patches are no image")
    if images.size and not 0 <= int(images.min()) <= int(images.max()) < 1 << 16:
        raise CodesError("codes below 0 or above 65,535")
    size = size or (rows * PATCH_SIZE, cols * PATCH_SIZE)
    if grid_of(size) != (rows, cols):
        raise CodesError(f"{size[0]}x{size[1]} px do not take {rows}x{cols} patches")
    return [Codes(a.astype(np.uint16), size, 0, info.fingerprint, info.dtype) for a in images]


def _of_npz(data: bytes) -> tuple[np.ndarray, tuple[int, int] | None]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members: Mapping[str, zipfile.ZipInfo] = {
            m.filename.removesuffix(".npy"): m for m in archive.infolist()
        }
        name = next((n for n in ("ids", "codes") if n in members), None)
        if name is None:
            raise CodesError(f"has no array ids or codes, but {', '.join(members)[:80]}")
        ids, size = _member(archive, members[name]), None
        if "size" in members:
            found = _member(archive, members["size"]).ravel().tolist()
            if len(found) != 2 or not all(type(side) is int and side > 0 for side in found):
                raise CodesError("its size is not height and width in px")
            size = (found[0], found[1])
        return ids, size


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.file_size > _FILE_BYTES:
        raise CodesError(f"{member.filename!r} has more than {_FILE_BYTES:,} bytes")
    with archive.open(member) as file:
        return _array(file.read(_FILE_BYTES))


def _array(data: bytes) -> np.ndarray:
    """An array of numbers. What its header claims and the bytes do not hold is refused."""
    file, formats = io.BytesIO(data), np.lib.format
    version = formats.read_magic(file)
    readers = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    if version not in readers:
        raise CodesError(f"of version {version} of the format of numpy, which codes do not need")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > len(data):
        raise CodesError("an array of Python objects, or cut short; neither is read")
    file.seek(0)
    return formats.read_array(file, allow_pickle=False)


def _checked(sample: Sequence[CodeRow], info: StoreInfo) -> Sequence[CodeRow]:
    most = codebook_size(info.levels) if info.levels else 1 << 16
    for row in sample:
        codes = row.codes
        if codes is not None and codes.ids.size and int(codes.ids.max()) >= most:
            raise CodesError(
                f"{row.key}: has the code {int(codes.ids.max())}, but the codebook of {info.model} "
                f"has {most}: another tokenizer made it; give its --model"
            )
    return sample
