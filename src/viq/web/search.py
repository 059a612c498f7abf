"""Rows of a store that are like a picture or fit a sentence, as pieces of work.

Nothing is indexed before it is asked for: the first search by content computes vectors of rows,
in an order that is drawn once, for as long as it may, and each further one goes on from there. The
answer says how many rows it has seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any

import numpy as np

from viq.core.codes import Codes
from viq.core.errors import ViqError
from viq.jobs.store.near_duplicates import code_set, overlap
from viq.train.tokenizer.caption_embeddings import Sentences
from viq.web.stores import OpenStore
from viq.web.work import Work

_SHOWN = 24
_EVERY = 64  # rows between two looks at the clock


@dataclass
class Vectors:
    """Unit vectors of some rows of a store."""

    numbers: list[int] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    order: np.ndarray | None = None


def by_codes(opened: OpenStore, codes: Codes, work: Work) -> dict[str, Any]:
    """The rows that share most codes with a picture: common codes over all codes of both."""
    wanted, best, seen = code_set(codes), [], 0
    for number, row in enumerate(opened.store.rows(columns=())):
        if row.codes is not None:
            best.append((overlap(wanted, code_set(row.codes)), number))
        seen += 1
        if seen % 1000 == 0:
            best = nlargest(_SHOWN, best)
            work.check()
            work.tell(stage=f"compared {seen:,} of {len(opened):,} rows")
    found = [(number, value) for value, number in nlargest(_SHOWN, best) if value > 0]
    return _answer(found, seen, len(opened), "shared codes")


def by_vector(
    opened: OpenStore, vector: np.ndarray, known: Vectors, work: Work, rows: int, seconds: float
) -> dict[str, Any]:
    """The rows whose `image_embeds` point most the way of a unit vector (E,)."""
    _extend(opened, known, work, rows, seconds)
    if not known.numbers:
        raise ViqError("no row with a picture was seen; search again")
    similar = np.stack(known.vectors) @ vector
    best = np.argsort(-similar)[:_SHOWN]
    found = [(known.numbers[place], float(similar[place])) for place in best]
    return _answer(found, len(known.numbers), len(opened), "cosine")


def picture_vector(opened: OpenStore, codes: Codes) -> np.ndarray:
    """Of a picture, to search by. Raises `ViqError` for a model without a text head."""
    return opened.require_tokenizer().image_embeds(codes)[0].float().cpu().numpy()


def text_vector(opened: OpenStore, words: str, sentences: Sentences) -> np.ndarray:
    """Of a sentence, to search by. Raises `ViqError` as `picture_vector`."""
    head = opened.require_tokenizer().config.text
    if head is None or head.width != sentences.width:
        raise ViqError("this tokenizer knows no sentences; take viq-transform")
    return sentences([words])[0].numpy()


def _extend(opened: OpenStore, known: Vectors, work: Work, rows: int, seconds: float) -> None:
    """Vectors of further rows, until so many are known or the time is over."""
    if known.order is None:
        known.order = np.random.default_rng(0).permutation(len(opened))[:rows]
    tokenizer, until = opened.require_tokenizer(), time.monotonic() + seconds
    while len(known.numbers) < len(known.order) and time.monotonic() < until:
        work.check()
        work.tell(stage=f"read {len(known.numbers):,} of {len(known.order):,} rows")
        start = len(known.numbers)
        for number in known.order[start : start + _EVERY].tolist():
            codes = opened.codes(number)
            width = tokenizer.config.text.width if tokenizer.config.text else 0
            nothing = np.zeros(width, np.float32)
            known.vectors.append(
                tokenizer.image_embeds(codes)[0].float().cpu().numpy() if codes else nothing
            )
            known.numbers.append(number)


def _answer(found: list[tuple[int, float]], seen: int, total: int, what: str) -> dict[str, Any]:
    return {
        "rows": [number for number, _ in found],
        "values": [f"{what} {value:.3f}" for _, value in found],
        "about": f"Searched {seen:,} of {total:,} rows.",
    }
