"""Files of codes back to images: what `viq decode` runs.

A picture is named after its key, `photos/a.jpg` becomes `photos/a.png`:

- Folders that all keys begin with are left out, and so is the suffix of an image file.
- Rows that have no key of their own keep their number: `pairs.parquet:12`, `pairs.jsonl:12` and
  `pairs.json#12` become `pairs-12.png`.
- Of a sample of several images each has its number: `pairs-12-0.png`, `pairs-12-1.png`.
- What is no name everywhere is changed as `viq.core.names` says. `..` and empty parts are left out,
  a folder whose name ends in `.png` gets a `_` after it, and a key of more than 700 bytes or 32
  parts is its last part and a hash.
- If an earlier picture has the name, in whatever case, 8 hex digits of a hash of the key follow.

Beside the pictures `decoded.jsonl` says which key each is of: lines of {file, key, image_index,
codes, model, sha256}. By it an interrupted job is gone on with, and nothing else is replaced.
Behind a URL (s3://, gs://, ..) pictures are written in groups (`viq.core.remote_outputs`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from viq.core.codes import Codes
from viq.core.errors import first_line
from viq.core.files import DEFAULT_MODEL
from viq.core.names import PATH_BYTES, folded, hashed, portable
from viq.core.outputs import Manifest, require_folder
from viq.core.remote import Location, RemoteError, RemoteFolder, location
from viq.core.remote_outputs import RemoteManifest
from viq.core.types import FLOAT32, CodesError, ViqError
from viq.core.untrusted import below
from viq.image.open import IMAGE_SUFFIXES
from viq.jobs.summary import Summary
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import SINGLE, Store, read_single
from viq.store.rows import CodesReader
from viq.store.salvage import keys_and_places, rows_or_reasons
from viq.weights import checkpoint
from viq.weights.bundled import bundled_maker

MANIFEST = "decoded.jsonl"
_SUFFIX = ".png"
_PARTS = 32  # of a path; the library and the system count each
_NUMBERED = re.compile(r"(.*?)(\.(parquet|jsonl|ndjson|json|tar|arrow))?[:#](\d+)", re.I | re.S)


@dataclass(frozen=True)
class Picture:
    """One row of codes, and the file it is to become.

    Attributes:
        key: None if it cannot be read.
        name: path below the folder of the pictures, with slashes.
    """

    key: str | None
    image_index: int
    name: str


@dataclass(frozen=True)
class _Part:
    """One file of codes: a .viq file, or a shard; `reader` opens it, `broken` says why not."""

    path: Path
    model: str = ""
    reader: Callable[[], CodesReader] | None = None
    broken: str = ""

    def places(self) -> list[tuple[str | None, int]]:
        """(key, image_index) of every row."""
        if self.reader is None:
            return [(self.path.stem, 0)]
        with self.reader() as reader:
            return keys_and_places(reader)

    def codes(self) -> Iterator[Codes | CodesError | None]:
        """What each row holds: codes, nothing, or why it cannot be read."""
        if self.reader is None:
            yield _single(self.path)
            return
        with self.reader() as reader:
            for row in rows_or_reasons(reader):
                yield row if isinstance(row, CodesError) else row.codes


def read_codes(paths: Iterable[Location]) -> Iterator[tuple[str, Codes, str]]:
    """(key, codes, name of the model or "") of stores, .parquet and .viq files.

    Raises:
        CodesError: a file is no file of codes, or damaged; names it.
    """
    for path in paths:
        if isinstance(path, Path) and path.suffix == SINGLE:
            codes = _single(path)
            if isinstance(codes, CodesError):
                raise CodesError(f"{path}: {codes}")
            yield path.stem, codes, ""
        else:
            store = Store(path)
            for key, codes in store:
                yield key, codes, store.info.model


def maker_of(path: Location) -> str:
    """Name of the bundled tokenizer that made the codes at a path; the default one of those that
    no bundled one made, or that cannot be read."""
    try:
        if isinstance(path, Path) and path.suffix == SINGLE:
            made_by = read_single(path).fingerprint
        else:
            made_by = Store(path).info.fingerprint
    except ViqError:  # whoever reads the codes tells of it
        return DEFAULT_MODEL
    return bundled_maker(made_by) or DEFAULT_MODEL


def decode_files(
    tokenizer: VisualTokenizer,
    paths: Sequence[Location],
    out: Location,
    *,
    any_tokenizer: bool = False,
    overwrite: bool = False,
    begin: Callable[[int], None] = lambda rows: None,
    progress: Callable[[], None] = lambda: None,
) -> Summary:
    """Decode stores, .parquet or .viq files to PNG files in a folder, named after the keys.

    A damaged row is listed with its reason and the rest goes on. Pictures that an earlier run of
    the same job made are left as they are.

    Args:
        out: a folder here, or behind a URL.
        any_tokenizer: decode codes of another tokenizer all the same.
        overwrite: replace files that this job did not make.
        begin: called once, with the number of rows.
        progress: called after each of them.

    Raises:
        CodesError: an input is no file of codes, or was made by another tokenizer and not
            `any_tokenizer`.
        ViqError: files that are there would be replaced, and not `overwrite`.
    """
    start, out = time.perf_counter(), location(out)
    manifest = _manifest(out)
    parts = [part for path in paths for part in _parts(path, tokenizer, any_tokenizer)]
    report = Summary(failures=[_failure(str(p.path), p.broken) for p in parts if p.broken])
    parts = [part for part in parts if not part.broken]
    named = name_pictures([part.places() for part in parts])
    if not overwrite:
        _refuse_clashes(out, manifest, [picture for pictures in named for picture in pictures])
    job = _Decoding(tokenizer, manifest, any_tokenizer, overwrite, report)
    begin(sum(map(len, named)))
    for part, pictures in zip(parts, named, strict=True):
        for picture, codes in zip(pictures, part.codes(), strict=True):
            if codes is not None:
                try:
                    job.decode(picture, codes, part.model)
                except Exception as error:  # what a row of somebody else makes a library raise
                    if _is_of_place(error):
                        raise
                    report.failures.append(_failure(picture.key, _told(part.path, error)))
            progress()
    if isinstance(manifest, RemoteManifest):
        manifest.finish()
    report.seconds = time.perf_counter() - start
    return report


def _manifest(out: Location) -> Manifest | RemoteManifest:
    """The list of the pictures in a folder, which is looked at before any work."""
    if isinstance(out, str):
        return RemoteManifest(RemoteFolder(out), MANIFEST, "decode")
    require_folder(out)
    return Manifest(out / MANIFEST, "decode")


def _place(manifest: Manifest | RemoteManifest, name: str, key: str) -> str:
    """Where a picture goes. Raises `UntrustedError` if a link leads out of the folder."""
    if isinstance(manifest, RemoteManifest):
        return f"{manifest.folder.url}/{name}"
    return str(below(manifest.path.parent, name, key))


class _Decoding:
    """One run of `decode_files`."""

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        manifest: Manifest | RemoteManifest,
        any_tokenizer: bool,
        overwrite: bool,
        report: Summary,
    ) -> None:
        self._tokenizer, self._manifest, self._report = tokenizer, manifest, report
        self._any, self._overwrite = any_tokenizer, overwrite
        self._painter = _painter(tokenizer)

    def decode(self, picture: Picture, codes: Codes | CodesError, model: str) -> None:
        """Write one picture, unless this job did before.

        Raises:
            ViqError: why there is none.
        """
        if isinstance(codes, CodesError):
            raise codes
        if codes.dtype != FLOAT32:
            others = self._report.other_dtypes
            others[codes.dtype] = others.get(codes.dtype, 0) + 1
        where = picture.key or picture.name
        path = _place(self._manifest, picture.name, where)
        facts = {
            "key": picture.key,
            "image_index": picture.image_index,
            "codes": hashlib.sha256(codes.to_bytes()).hexdigest(),
            "model": self._painter,
        }
        if self._manifest.is_there(picture.name):
            made = self._manifest.made(picture.name)
            if made is not None and facts.items() <= made.items():
                self._report.resumed += 1
                return
            if not self._overwrite or Path(path).is_dir():  # as no URL is
                raise ViqError(
                    f"{path}: exists, and is not what this job made of {where}; give another "
                    "folder, or --overwrite"
                )
        if self._any:
            codes = replace(codes, fingerprint="", refinement="")
        else:
            _require(self._tokenizer, codes.fingerprint, where, model)
        (image,) = self._tokenizer.decode(codes)
        with io.BytesIO() as stream:
            image.save(stream, format="PNG")
            self._manifest.write(picture.name, stream.getvalue(), **facts)
        self._report.count(codes)
        self._report.outputs.append(path)


def name_pictures(
    parts: Sequence[Sequence[tuple[str | None, int]]],
) -> list[list[Picture]]:
    """Names for the rows of files of codes, (key, image_index) each, no two the same."""
    common = _common_folder(key for rows in parts for key, _ in rows if key is not None)
    taken: set[str] = set()
    return [
        [
            Picture(key, index, _free_name(key, index, several, common, taken))
            for (key, index), several in zip(rows, _of_several(rows), strict=True)
        ]
        for rows in parts
    ]


def _of_several(rows: Sequence[tuple[str | None, int]]) -> list[bool]:
    """Whether each row is one of several images of its sample, which index 0 begins."""
    return [
        index > 0 or (place + 1 < len(rows) and rows[place + 1][1] > 0)
        for place, (_, index) in enumerate(rows)
    ]


def _free_name(key: str | None, index: int, several: bool, common: str, taken: set[str]) -> str:
    number = f"-{index}" if several else ""
    stem = _stem((key or "").removeprefix(common))
    name = f"{stem}{number}{_SUFFIX}"
    tries = 1
    while folded(name) in taken:
        again = f"-{tries}" if tries > 1 else ""
        name = f"{stem}{number}-{hashed(key or '')[:8]}{again}{_SUFFIX}"
        tries += 1
    taken.add(folded(name))
    return name


def _stem(key: str) -> str:
    """The path that a key gives, without number and suffix."""
    numbered = _NUMBERED.fullmatch(key)
    if numbered:
        text = f"{numbered[1]}-{numbered[4]}"
    else:
        suffix = PurePosixPath(key).suffix
        text = key.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else key
    given = [portable(part) for part in text.split("/") if part not in (".", "..")]
    parts = [part for part in given if part] or ["image"]
    parts[:-1] = [_folder(part) for part in parts[:-1]]
    path = "/".join(parts)
    if len(parts) > _PARTS or len(path.encode()) > PATH_BYTES:
        return f"{parts[-1]}-{hashed(key)}"
    return path


def _folder(part: str) -> str:
    """The name of a folder, which no file of ours can have."""
    return part + "_" if part.lower().endswith(_SUFFIX) or folded(part) == MANIFEST else part


def _common_folder(keys: Iterable[str]) -> str:
    """The longest folder, with its slash, that all keys begin with; "" if none."""
    prefix = os.path.commonprefix(list(keys))
    return prefix[: prefix.rfind("/") + 1]


def _refuse_clashes(
    out: Location, manifest: Manifest | RemoteManifest, pictures: Sequence[Picture]
) -> None:
    """Refuse before the work what is known to fail: files that are there and not of this job."""
    clashes = [
        picture.name
        for picture in pictures
        if manifest.is_there(picture.name)
        and not any(
            (entry.get("key"), entry.get("image_index")) == (picture.key, picture.image_index)
            for entry in manifest.listed(picture.name)
        )
    ]
    if clashes:
        more = f", and {len(clashes) - 1} more," if len(clashes) > 1 else ""
        raise ViqError(
            f"{out}/{clashes[0]}: exists{more} and this job did not make it; give another folder, "
            "or --overwrite"
        )


def _parts(path: Location, tokenizer: VisualTokenizer, any_tokenizer: bool) -> Iterator[_Part]:
    """The files of an input that can be opened, and the others with a reason.

    Raises:
        CodesError: it is no input, or of another tokenizer.
    """
    if isinstance(path, Path) and path.suffix == SINGLE:
        if not path.exists():
            raise CodesError(f"{path}: no such file")
        yield _Part(path)
        return
    store = Store(path)
    if not any_tokenizer:
        _require(tokenizer, store.info.fingerprint, str(path), store.info.model)
    for shard in store.shards:
        try:
            file = store.file(shard)
            store.reader(shard).__exit__()
        except CodesError as error:
            if len(store.shards) == 1:
                raise
            yield _Part(Path(path) / shard.name, broken=str(error))
        else:
            yield _Part(file, store.info.model, lambda shard=shard: store.reader(shard))


def _single(path: Path) -> Codes | CodesError:
    """The codes of a .viq file, or why it cannot be read, without its name."""
    try:
        return read_single(path)
    except CodesError as error:
        return CodesError(str(error).removeprefix(f"{path}: "))


def _require(tokenizer: VisualTokenizer, fingerprint: str, where: str, model: str) -> None:
    try:
        tokenizer.require(fingerprint)
    except CodesError as error:
        made_by = f" (its model is called {model})" if model else ""
        raise CodesError(f"{where}: {error}{made_by}; or --any-tokenizer") from None


def _painter(tokenizer: VisualTokenizer) -> str:
    """16 hex digits that tell what turns codes into pixels, which is not in the fingerprint."""
    parts = ("quantizer", "decoder", "latent_head")
    config: dict[str, Any] = checkpoint.to_dict(tokenizer.config)
    weights = {k: v for k, v in tokenizer.state_dict().items() if k.split(".")[0] in parts}
    return checkpoint.fingerprint({part: config.get(part) for part in parts}, weights)


def _is_of_place(error: Exception) -> bool:
    """Whether nothing more can be written: a full disk, a server that does not answer.

    A name that the system refuses costs one picture.
    """
    if not isinstance(error, OSError):
        return isinstance(error, RemoteError)
    is_of_name = isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError))
    return not is_of_name and error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def _told(path: Path, error: Exception) -> str:
    if isinstance(error, (ViqError, OSError)):
        return str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
    return f"{path}: cannot be decoded ({type(error).__name__}: {first_line(error)})"


def _failure(key: str | None, reason: str) -> dict[str, str]:
    return {"key": key or "", "reason": reason}
