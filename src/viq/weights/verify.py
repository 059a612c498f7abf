"""Whether the weights of a tokenizer's folder are those that its config names.

`config.json` has a fingerprint of encoder and quantizer, and since release 0.2 a digest of all
other weights (decoders, pooling head), which older folders may lack. Both are computed anew from
the file at each load, tensor by tensor as it is mapped, so a model takes no memory twice. For large
files that takes seconds: what came out is then remembered, in `verified.json` in the folder of
caches, for this very file (path, size, time of its last change, inode) and config. Who can write
there can write the user's models, too, so it is trusted as much as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from viq.core.files import cache_home, write_atomically
from viq.core.types import ViqError
from viq.core.untrusted import fingerprint
from viq.weights.checkpoint import CheckpointError, hashed, opened_weights, read_object

PARTS = ("encoder", "quantizer")  # of a config and of the names of weights: what decides codes
DIGEST = "digest"  # of the other weights, in config.json
DIGEST_FILE = "digest.json"  # of a folder that transformers wrote

_REMEMBERED = "verified.json"
_LARGE = 128 * 2**20  # bytes from which on a file is remembered; hashing them takes 0.2 s
_MOST = 500  # files that are remembered


def decides(name: str) -> bool:
    """Whether the weight of this name belongs to what the fingerprint covers."""
    return name.partition(".")[0] in PARTS


def rest_digest(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of the weights that the fingerprint does not cover."""
    return hashed("", ((name, weights[name]) for name in sorted(weights) if not decides(name)))


def digests_of(values: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Fingerprint and digest that a parsed config.json names; "" for what it does not.

    Raises:
        CheckpointError: not in hex digits.
    """
    try:
        found = [fingerprint(values.get(k) or "", where) for k in ("fingerprint", DIGEST)]
    except ViqError as error:
        raise CheckpointError(f"{error}; copy the config again") from None
    return found[0], found[1]


def verify(
    path: Path,
    config: Mapping[str, Any],
    digests: tuple[str, str],
    loaded: Mapping[str, Tensor] | None = None,
) -> None:
    """See that a tokenizer's weight file has this fingerprint and digest; "" is not looked at.

    Args:
        config: of encoder and quantizer, as JSON-able dictionaries by the names in `PARTS`.
        loaded: what was read of the file, in fp32, if all of it was: spares reading it again.

    Raises:
        CheckpointError: it has not, or is damaged.
    """
    if any(digests):
        head = json.dumps(config, sort_keys=True)
        _require(path, digests, _digests(path, head, bool(digests[1]), loaded))


def verify_all(path: Path, digest: str) -> None:
    """See that all weights in a file have this digest, as `digest_of` gives it; "" passes.

    Raises:
        CheckpointError: they have not, or the file is damaged.
    """
    if digest:
        _require(path, ("", digest), ("", _digests(path, "", False)[0]))


def verify_own(path: Path) -> None:
    """See that all weights in a file have the digest in its own header; older files have none.

    Raises:
        CheckpointError: they have not, or the file is damaged.
    """
    with opened_weights(path) as file:
        stated = (file.metadata() or {}).get(DIGEST, "")
    if stated and stated != (found := _digests(path, "", False)[0]):
        raise CheckpointError(f"{path}: has the digest {found}, not {stated[:16]}: it is damaged")


def write_digest(folder: Path) -> None:
    """Write the digest of a folder's weights beside them: for those that transformers wrote, whose
    config.json goes with any other weights as well."""
    text = json.dumps({DIGEST: _folder_digest(folder)}) + "\n"
    write_atomically(folder / DIGEST_FILE, text.encode())


def verify_folder(folder: Path) -> None:
    """See that a folder's weights are those of `write_digest`, if there is a digest.

    Raises:
        CheckpointError: they are not, or a file is damaged.
    """
    path = folder / DIGEST_FILE
    if not path.exists():
        return
    stated, found = read_object(path).get(DIGEST), _folder_digest(folder)
    if stated != found:
        raise CheckpointError(
            f"{folder}: its weights have the digest {found}, not the one in {DIGEST_FILE}: damaged "
            f"or half copied; copy the folder again (if you changed them, remove {DIGEST_FILE})"
        )


def _folder_digest(folder: Path) -> str:
    found = [_digests(path, "", False)[0] for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of all weights."""
    return hashed("", ((name, weights[name]) for name in sorted(weights)))


def _require(path: Path, wanted: tuple[str, str], found: tuple[str, str]) -> None:
    for what, digest, computed in zip(("fingerprint", DIGEST), wanted, found, strict=True):
        if digest and digest != computed:
            raise CheckpointError(
                f"{path}: its weights have the {what} {computed}, but config.json says {digest}: "
                "damaged, half copied, or of another model; copy both files again"
            )


def _digests(
    path: Path, head: str, rest: bool, loaded: Mapping[str, Tensor] | None = None
) -> tuple[str, str]:
    """Of a file: the digest of a text and what decides codes (without a text, of all there is),
    and that of the rest, "" where it is not wanted."""
    status = os.stat(path) if path.is_file() else None
    if status is None or status.st_size < _LARGE:
        return _computed(path, head, rest, loaded)
    place = os.path.realpath(path)
    identity = {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "config": hashlib.sha256(head.encode()).hexdigest()[:16],
    }
    known = _remembered().get(place)
    if isinstance(known, dict) and known.items() >= identity.items():
        with suppress(CheckpointError):
            found = digests_of(known, place)
            if found[0] and (found[1] or not rest):
                return found
    found = _computed(path, head, rest, loaded)
    _remember(place, {**identity, "fingerprint": found[0], DIGEST: found[1]})
    return found


def _computed(
    path: Path, head: str, rest: bool, loaded: Mapping[str, Tensor] | None
) -> tuple[str, str]:
    """Both at a time: hashing leaves Python's lock to others."""
    with opened_weights(path) as file:
        names = sorted(file.keys())
        get = file.get_tensor if loaded is None else loaded.__getitem__

        def tensors(chosen: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
            return ((name, get(name)) for name in chosen)

        first = [name for name in names if decides(name)] if head else names
        with ThreadPoolExecutor(2) as pool:
            main = pool.submit(hashed, head, tensors(first))
            other = (
                pool.submit(hashed, "", tensors(n for n in names if not decides(n)))
                if rest
                else None
            )
            return main.result(), other.result() if other else ""


def _remembered() -> dict[str, Any]:
    with suppress(OSError, RuntimeError, ViqError):  # RuntimeError: there is no home
        return read_object(cache_home() / _REMEMBERED)
    return {}


def _remember(place: str, entry: dict[str, Any]) -> None:
    """Failing does no harm: the file is hashed again next time."""
    known = {k: v for k, v in _remembered().items() if k != place}
    newest = dict([*known.items(), (place, entry)][-_MOST:])
    with suppress(OSError, RuntimeError):
        write_atomically(cache_home() / _REMEMBERED, (json.dumps(newest, indent=1) + "\n").encode())
