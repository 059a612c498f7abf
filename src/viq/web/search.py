"""Rows of a store that are like a picture or fit a sentence, as pieces of work."""

from __future__ import annotations

import time
from heapq import nlargest
from typing import Any

import numpy as np

from viq.core.codes import Codes
from viq.core.errors import ViqError
from viq.jobs.store.near_duplicates import code_set, overlap
from viq.train.tokenizer.caption_embeddings import Sentences
from viq.web.stores import OpenStore
from viq.web.vectors import Vectors
from viq.web.work import Work

_SHOWN = 24
_PATIENCE = 5.0  # seconds that a search waits for vectors before it answers with those there are
_POLL = 0.2  # seconds between two lines of progress
_SCAN_SECONDS = 90.0  # that codes are compared


def by_codes(opened: OpenStore, codes: Codes, work: Work) -> dict[str, Any]:
    """The rows that share most codes with a picture: common codes over all codes of both."""
    wanted, best, seen = code_set(codes), [], 0
    until = time.monotonic() + _SCAN_SECONDS
    for number, row in enumerate(opened.store.rows(columns=())):
        if row.codes is not None:
            best.append((overlap(wanted, code_set(row.codes)), number))
        seen += 1
        if seen % 1000 == 0:
            best = nlargest(_SHOWN, best)
            work.check()
            work.tell(stage=f"compared {seen:,} of {len(opened):,} rows")
            if time.monotonic() > until:
                break
    found = [(number, value) for value, number in nlargest(_SHOWN, best) if value > 0]
    return _answer(found, "shared codes", f"Searched {seen:,} of {len(opened):,} rows.")


def await_vectors(vectors: Vectors, work: Work) -> None:
    """Wait a little, with progress, as those of a small store are soon there."""
    until = time.monotonic() + _PATIENCE
    while not vectors.wait(_POLL) and (time.monotonic() < until or not vectors.seen):
        work.check()
        work.tell(stage=f"read {vectors.seen:,} of {vectors.total:,} rows")


def by_vector(opened: OpenStore, vector: np.ndarray, vectors: Vectors) -> dict[str, Any]:
    """The rows known by now whose `image_embeds` point most the way of a unit vector (E,)."""
    growing = not vectors.is_complete  # looked at first: what ends meanwhile is in the answer
    about = f"Searched {vectors.seen:,} of {len(opened):,} rows."
    if growing and vectors.seen:
        minutes = max(1, round(vectors.seconds_left / 60))
        about += f" More are being read, for about {minutes} minute{'s' * (minutes > 1)} yet."
    if vectors.trouble:
        about += f" Some could not be read: {vectors.trouble}."
    return _answer(vectors.nearest(vector, _SHOWN), "cosine", about) | {"growing": growing}


def picture_vector(opened: OpenStore, codes: Codes) -> np.ndarray:
    """Of a picture, to search by. Raises `ViqError` for a model without a text head."""
    return opened.require_tokenizer().image_embeds(codes)[0].float().cpu().numpy()


def text_vector(opened: OpenStore, words: str, sentences: Sentences) -> np.ndarray:
    """Of a sentence, to search by. Raises `ViqError` as `picture_vector`."""
    head = opened.require_tokenizer().config.text
    if head is None or head.width != sentences.width:
        raise ViqError("this tokenizer knows no sentences; take viq-transform")
    return sentences([words])[0].numpy()


def _answer(found: list[tuple[int, float]], what: str, about: str) -> dict[str, Any]:
    return {
        "rows": [number for number, _ in found],
        "values": [f"{what} {value:.3f}" for _, value in found],
        "about": about,
        "growing": False,
    }
