"""What a job over many images did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from viq.store.job import Counts


@dataclass(kw_only=True)
class Summary(Counts):
    """What a job did; counts and seconds are of this run.

    Attributes:
        failures: key and reason of each input that gave nothing; of a store, also those of
            earlier runs.
        outputs: files and folders that were written.
        kept: older ones that were to be replaced and are left as they were, as nothing came of it.
        resumed: inputs of a file that an interrupted run had finished.
        no_image: rows without an image, which keep their place.
        left_over: how many of what else in the inputs has no part in the codes.
        other_dtypes: how many codes to decode were made in which dtype, but for float32.
        store: of a store, how far it is; else empty.
    """

    seconds: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    resumed: int = 0
    no_image: int = 0
    left_over: dict[str, int] = field(default_factory=dict)
    other_dtypes: dict[str, int] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)

    def failure_reasons(self) -> dict[str, int]:
        """How many inputs failed for each reason, the most frequent first; the first hundred."""
        counts = Counter(_reason(failure) for failure in self.failures)
        return dict(counts.most_common(100))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with derived figures: megapixels, bytes of raw RGB over bytes of codes."""
        seconds = max(self.seconds, 1e-9)
        return {
            "images": self.images,
            "megapixels": round(self.pixels / 1e6, 3),
            "codes": self.codes,
            "bytes": 2 * self.codes,
            "ratio": round(3 * self.pixels / (2 * self.codes), 2) if self.codes else None,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / seconds, 3),
            "megapixels_per_second": round(self.pixels / 1e6 / seconds, 3),
            "shrunk": self.shrunk,
            "tiled": self.tiled,
            "failures": self.failures,
            **({"failure_reasons": self.failure_reasons()} if self.failures else {}),
            "outputs": self.outputs,
            **({"kept": self.kept} if self.kept else {}),
            **({"left_over": self.left_over} if self.left_over else {}),
            **({"resumed": self.resumed} if self.resumed else {}),
            **({"other_dtypes": self.other_dtypes} if self.other_dtypes else {}),
            **({"store": self.store} if self.store else {}),
        }


def _reason(failure: dict[str, str]) -> str:
    """Why an input failed, without its place and key."""
    reason, key = failure["reason"], failure["key"]
    tail = reason.rpartition(f"{key}: ")[2] if key else reason
    return tail.rpartition(": ")[2] if tail == reason else tail
