"""Find the entropy model that compressed the codes of a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel, beside
from viq.core.types import ViqError
from viq.core.untrusted import below

_DIGEST = re.compile(r"[0-9a-f]{16}")


def find_model(digest: str, folder: Path, others: Iterable[Path] = ()) -> EntropyModel:
    """The entropy model of compressed codes in `folder`: it lies there, or is one of `others`.

    Raises:
        ViqError: there is none, or it is damaged.
    """
    if not _DIGEST.fullmatch(digest):  # it comes from a file, and is about to be part of a path
        raise ViqError(
            f"{folder}: no entropy model has the digest {digest!r}; the codes are damaged"
        )
    for path in chain([below(folder, beside(digest), str(folder))], others):
        if path.is_file():
            about = path.stat()
            model = _loaded(path, about.st_mtime_ns, about.st_size)
            if model.digest == digest:
                return model
    raise ViqError(
        f"{folder}: has codes compressed with the entropy model {digest}, which is missing; copy "
        f"{ENTROPY_FILE} of their tokenizer to {folder / beside(digest)}"
    )


@lru_cache(maxsize=8)
def _loaded(path: Path, changed: int, size: int) -> EntropyModel:
    """The shards of a store share a model. Time and size make a file that is replaced another."""
    return EntropyModel.load(path)
