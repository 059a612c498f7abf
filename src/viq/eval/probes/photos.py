"""Photos with labels: which are held out, and how many of those classifiers name.

Photos are split by their keys, of which one in four is held out (`data/corpora/held_out.py`).

n = photos, C = width of features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from viq.core.types import ViqError
from viq.data.corpora.held_out import HELD_OUT, LEAST, labelled
from viq.data.sources.base import Source
from viq.eval.probes.classifiers import NEIGHBOURS, logistic, nearest, whitened
from viq.metrics.intervals import of_share

Classifier = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def labelled_rows(
    source: Source, label: str, where: Mapping[str, str]
) -> tuple[list[tuple[int, str, bool]], int]:
    """(row, name, held out) of all photos with a frequent label, and how many cannot be read.

    Raises:
        ViqError: fewer than two labels of at least 8 photos each.
    """
    rows, skipped = labelled(source, label, where)
    if (names := len({name for _, name, _ in rows})) < 2:
        raise ViqError(
            f"{names} values of the column {label!r} have {LEAST} photos or more: give "
            "photos of two names at least, and their column as --label"
        )
    return rows, skipped


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is in each of n photos.

    Attributes:
        names: in order.
        targets_n: int64, places in `names`.
        held_n: bool, whether a photo is held out.
    """

    names: tuple[str, ...]
    targets_n: Tensor
    held_n: Tensor

    @classmethod
    def of(cls, names: list[str], held: list[bool]) -> Labels:
        """Labels of photos by the name of each, and whether it is held out.

        Raises:
            ViqError: there are none to train on, or none that are held out.
        """
        if len(set(held)) < 2:
            raise ViqError(
                f"{len(held)} photos with labels can be read, too few to learn and ask: check them"
            )
        known = sorted(set(names))
        return cls(
            names=tuple(known),
            targets_n=torch.tensor([known.index(name) for name in names]),
            held_n=torch.tensor(held),
        )

    def facts(self, skipped: int) -> dict[str, Any]:
        """names (how many), train and held_out (photos), split, skipped, and chance: the percentage
        of held-out photos that have the most frequent name."""
        held = int(self.held_n.sum())
        most = Counter(self.targets_n[self.held_n].tolist()).most_common(1)[0][1]
        return {
            "names": len(self.names),
            "train": len(self.held_n) - held,
            "held_out": held,
            "split": f"by key: 1 in {HELD_OUT} by SHA-256 is held out",
            "skipped": skipped,
            "chance": round(100 * most / held, 1),
        }

    def score(self, x_nC: Tensor, classifier: Classifier = logistic) -> dict[str, float]:
        """Right names of held-out photos: `percent`, and `interval`, half of Wilson's at 95%."""
        train, test = ~self.held_n, self.held_n
        guessed = classifier(x_nC[train], self.targets_n[train], x_nC[test], len(self.names))
        return of_share(int((guessed == self.targets_n[test]).sum()), int(test.sum()))

    def probes(self, x_nC: Tensor) -> dict[str, dict[str, Any]]:
        """`score` of the `linear` and of the `knn` classifier, each `plain` and `whitened`."""
        forms = {"plain": x_nC, "whitened": whitened(x_nC, ~self.held_n)}
        classifiers: dict[str, Classifier] = {"linear": logistic, "knn": nearest}
        return {
            kind: {form: self.score(x, classifier) for form, x in forms.items()}
            for kind, classifier in classifiers.items()
        }


class LabelledPhotos:
    """Photos that can be read, in order, decoded anew at each pass.

    Attributes:
        labels: of each of them.
        skipped: photos that cannot be read.
    """

    def __init__(
        self, source: Source, label: str = "label", where: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            source: as `open_source` gives it.
            label: the column that names what is in a photo; rows without it are left out.
            where: only rows whose columns have these values.

        Raises:
            ViqError: fewer than two labels of at least 8 photos each.
        """
        rows, self.skipped = labelled_rows(source, label, where or {})
        readable = [row for row in rows if _opens(source, row[0])]
        self.skipped += len(rows) - len(readable)
        self._source, self._rows = source, [index for index, _, _ in readable]
        self.labels = Labels.of([name for _, name, _ in readable], [held for *_, held in readable])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Image.Image]:
        return (self._source[index].open() for index in self._rows)

    def facts(self) -> dict[str, Any]:
        """`Labels.facts`, and the `neighbours` that vote."""
        return {**self.labels.facts(self.skipped), "neighbours": NEIGHBOURS}


def _opens(source: Source, index: int) -> bool:
    try:
        source[index].open()
    except ViqError:
        return False
    return True
