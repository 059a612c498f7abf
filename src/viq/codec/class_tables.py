"""Format 2: tables of counts, for transform codes (`viq.models.tokenizer.transform_code`).

The first code of a patch says its class, its mean and a rest; the other codes are digits. Digits
are nearly even (docs/codes.md), class and mean are not: they resemble those of the neighbours. So

    mean    has a table for each mean of the neighbours, coarse digit first, then the fine one,
    class   has a table for each pair of buckets of what the classes of the neighbours are like:
            each class has two coordinates, in which classes that often meet lie close together,
    rest and digits are even, within the number of values that the class leaves them,
    whether the last code is detail, or meaning and of which phase, has a table for its place.

Patches are coded in five phases (`phases.py`), each with tables of its own. Ids that no encoder
gives, beyond those numbers of values, are possible all the same: an image with one is stored plain.

All arithmetic is on integers, so reader and writer agree on any machine.

T = patches of all images, n = those of one phase, J = classes, S = 4 slots, B = buckets of a
coordinate, H and L = high and low digits of a class, whose number is high * L + low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from viq.codec.entropy_model import EntropyModel, Known
from viq.codec.phases import PHASES, Part, Step, steps_of
from viq.codec.streams import Meter, Reader, Stream, Writer
from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, Grid, ViqError

COMMON = 12  # divisible by every number of neighbours: sums over them become comparable
PERIOD = 4  # rows and columns after which kinds of the last code repeat: 2x2 groups in 2x2 phases
_PLAIN = np.array([[(1 << 16) - 1, 1]], np.float64)  # whether an image is plain


class Shape(NamedTuple):
    """How codes are put together.

    Attributes:
        coarse, fine: digits of a mean.
        first: values of the rest of the first code, at most.
        detail: last codes from here on are meaning.
        kinds: phases of meaning, 0 if there is no meaning.
        meanings: ids of a phase.
        low: low digits of a class, L.
    """

    coarse: int
    fine: int
    first: int
    detail: int
    kinds: int
    meanings: int
    low: int


class Parts(NamedTuple):
    """What codes say: class, mean (coarse * fine digits + fine digit), kind of the last code (0 for
    detail) and what is left of each code (S, T), with the number of values that it can have; and
    which codes are there at all, bool (S, T). What is left of the others is 0."""

    class_T: np.ndarray
    mean_T: np.ndarray
    kind_T: np.ndarray
    rest_ST: np.ndarray
    sizes_ST: np.ndarray
    kept_ST: np.ndarray
    group_T: np.ndarray  # of patches by their counts


class ClassTables(EntropyModel, format=2):
    """Probabilities of the parts of transform codes, by tables.

    Args:
        tensors: integers. `shape`: the seven of `Shape`. `sizes` (J, S): values that are left of
            each code of a class. `coordinates` (J, 2), `cuts` (2, B - 1) ascending, between
            buckets of their mean, times COMMON. Counts from 1 to 65535: `coarse` (phases, means,
            coarse), `fine` (phases, means, coarse, fine), `high` (phases, B * B, H), `low`
            (phases, B * B, H, L), `kind` (16, 1 + kinds) of places in 4x4 patches.

    Raises:
        ViqError: tensors of wrong names, shapes or values.
    """

    batch_patches = 1 << 16
    _more: ClassVar[tuple[str, ...]] = ()  # tensors of a kind that builds upon this one

    def __init__(
        self, tensors: Mapping[str, np.ndarray], levels: Sequence[int], fingerprint: str
    ) -> None:
        super().__init__(tensors, levels, fingerprint)
        self._codebook = int(np.prod(self.levels))
        own = {name: part for name, part in tensors.items() if name not in self._more}
        self.shape = _check(own, self._codebook)
        self._sizes = tensors["sizes"].astype(np.int32)
        # Of each class plus 1; 0 stands for none.
        self._coordinates = np.pad(
            tensors["coordinates"].astype(np.int32), ((1, 0), (0, 0))
        ).T.copy()
        self._cuts = tensors["cuts"].astype(np.int32)
        # In float64: the coder scales sums of it to 2**24, and float32 can round them.
        names = ("coarse", "fine", "high", "low", "kind")
        self._tables = {name: tensors[name].astype(np.float64) for name in names}

    def _encode(self, ids: Sequence[np.ndarray], known: Sequence[Known]) -> list[np.ndarray]:
        writer, parts = (
            Writer(len(ids)),
            [
                self.split(item.reshape(-1, CODES_PER_PATCH), about)
                for item, about in zip(ids, known, strict=True)
            ],
        )
        plain = self._flags(writer, [not self.fits(part).all() for part in parts])
        for image in (i for i, flag in enumerate(plain) if flag):
            ids_TS = ids[image].reshape(-1, CODES_PER_PATCH)
            self._plain(writer.only([image]), ids_TS, parts[image].kept_ST)
        usual = [i for i, flag in enumerate(plain) if not flag]
        if usual:
            together = Parts(
                *(np.concatenate(some, -1) for some in zip(*(parts[i] for i in usual), strict=True))
            )
            self._walk(
                writer.only(usual), [(ids[i].shape[0], ids[i].shape[1]) for i in usual], together
            )
        return writer.words()

    def _decode(self, words: Sequence[np.ndarray], known: Sequence[Known]) -> list[np.ndarray]:
        grids = [each.grid for each in known]
        reader, counts = Reader(words, self._damage()), [rows * cols for rows, cols in grids]
        plain = self._flags(reader, [False] * len(words))
        found = [np.zeros((count, CODES_PER_PATCH), np.int32) for count in counts]
        for image in (i for i, flag in enumerate(plain) if flag):
            self._plain(reader.only([image]), found[image], self._there(known[image])[0])
        usual = [i for i, flag in enumerate(plain) if not flag]
        if usual:
            there = zip(*(self._there(known[i]) for i in usual), strict=True)
            parts = _nothing(*(np.concatenate(some, -1) for some in there))
            self._walk(reader.only(usual), [grids[i] for i in usual], parts)
            ends = np.cumsum([counts[i] for i in usual])[:-1]
            for image, ids_TS in zip(usual, np.split(self.join(parts), ends), strict=True):
                found[image] = ids_TS
        return [
            ids_TS.astype(np.uint16).reshape(*grid, CODES_PER_PATCH)
            for ids_TS, grid in zip(found, grids, strict=True)
        ]

    def patch_bits(self, codes: Codes) -> np.ndarray:
        self._require_own([codes])
        ids_TS, meter = codes.ids.reshape(-1, CODES_PER_PATCH), Meter(codes.ids[..., 0].size)
        known = self._known(codes.size, codes.tile, codes.counts, codes.meaning)
        parts = self.split(ids_TS, known)
        if not self.fits(parts).all():
            self._plain(meter, ids_TS, parts.kept_ST)
        else:
            for step in steps_of([codes.grid]):
                self._code_step(meter.at(step.places_n), step, parts)
            self._code_rest(meter, [codes.grid], parts)
        return meter.bits_T.reshape(codes.grid)

    # Codes and their parts

    def split(self, ids_TS: np.ndarray, known: Known | None = None) -> Parts:
        """What codes (T, S) say.

        Args:
            known: of their image; None: all codes are there.
        """
        kept_ST, group_T = self._there(known or Known((1, len(ids_TS))))
        s, ids_TS = self.shape, np.where(kept_ST.T, ids_TS, 0).astype(np.int32)
        head_T, first_T = np.divmod(ids_TS[:, 0], np.int32(s.first))
        class_T, mean_T = np.divmod(head_T, np.int32(s.coarse * s.fine))
        last_T = ids_TS[:, -1]
        kind_T = np.zeros_like(last_T)
        if s.kinds:
            meant_T = last_T >= s.detail
            kind_T[meant_T] = 1 + (last_T[meant_T] - s.detail) // s.meanings
            last_T = np.where(meant_T, (last_T - s.detail) % s.meanings, last_T)
        rest_ST = np.stack([first_T, *ids_TS.T[1:-1], last_T])
        sizes_ST = self._sizes_of(class_T, kind_T)
        return Parts(class_T, mean_T, kind_T, rest_ST, sizes_ST, kept_ST, group_T)

    def join(self, parts: Parts) -> np.ndarray:
        """Codes (T, S) of what they say."""
        s, ids_ST = self.shape, parts.rest_ST.copy()
        head_T = parts.class_T * (s.coarse * s.fine) + parts.mean_T
        ids_ST[0] += head_T * s.first
        ids_ST[-1] += np.where(parts.kind_T > 0, s.detail + (parts.kind_T - 1) * s.meanings, 0)
        return ids_ST.T

    def fits(self, parts: Parts) -> np.ndarray:
        """Whether parts (T,) are some that the tables know."""
        known_T = (parts.class_T < len(self._sizes)) & (parts.kind_T <= self.shape.kinds)
        for rest_T, sizes_T in zip(parts.rest_ST, parts.sizes_ST, strict=True):
            known_T &= rest_T < sizes_T
        return known_T

    def _there(self, known: Known) -> tuple[np.ndarray, np.ndarray]:
        """Which codes of patches are there (S, T), and the groups of patches (T,)."""
        kept_ST = known.kept.reshape(-1, CODES_PER_PATCH).T
        return kept_ST, np.zeros(kept_ST.shape[1], np.int32)

    def _sizes_of(self, class_T: np.ndarray, kind_T: np.ndarray) -> np.ndarray:
        sizes_ST = self._sizes.T.take(np.minimum(class_T, len(self._sizes) - 1), 1)
        sizes_ST[-1] = np.where(kind_T > 0, self.shape.meanings, sizes_ST[-1])
        return sizes_ST

    # Contexts

    def means_near(self, step: Step, mean_U: np.ndarray) -> np.ndarray:
        """Mean (n,) of the means of neighbours, rounded; `mean_U` has a 0 before those of T."""
        count_n = _count(step)
        return (2 * mean_U[step.neighbours_4n].sum(0) + count_n) // (2 * count_n)

    def classes_near(self, step: Step, class_U: np.ndarray) -> np.ndarray:
        """Mean coordinates (2, n) of neighbours, times COMMON; `class_U` are classes plus 1, and a
        0 before."""
        near_4n, scale_n = class_U[step.neighbours_4n], COMMON // _count(step)
        return np.stack([of.take(near_4n).sum(0) * scale_n for of in self._coordinates])

    def buckets(self, near_2n: np.ndarray) -> np.ndarray:
        """Numbers (n,) of pairs of buckets."""
        first, second = (
            np.searchsorted(cuts, near_n, side="right")
            for cuts, near_n in zip(self._cuts, near_2n, strict=True)
        )
        return first * (self._cuts.shape[1] + 1) + second

    # Writing and reading

    def _walk(self, stream: Stream, grids: Sequence[Grid], parts: Parts) -> None:
        """Write the parts of images, or read them into `parts`."""
        for step in steps_of(grids):
            self._code_step(stream, step, parts)
        self._code_rest(stream, grids, parts)

    def _code_rest(self, stream: Stream, grids: Sequence[Grid], parts: Parts) -> None:
        """Kinds and what is left of codes, which depend on no neighbours."""
        wholes = whole_parts(grids)
        if self.shape.kinds:
            tables_Tl = self._tables["kind"][corners(grids)]
            parts.kind_T[:] = stream.tables(wholes, tables_Tl, parts.kind_T)
        parts.sizes_ST[:] = self._sizes_of(parts.class_T, parts.kind_T)
        sizes_ST = np.where(parts.kept_ST, parts.sizes_ST, 1)
        for rest_T, sizes_T in zip(parts.rest_ST, sizes_ST, strict=True):
            rest_T[:] = stream.uniform(wholes, sizes_T, rest_T)

    def _code_step(self, stream: Stream, step: Step, parts: Parts) -> None:
        """Means and classes of one phase."""
        s, row, at_n, tables = self.shape, step.phase, step.places_n, self._tables
        near_n = self.means_near(step, np.pad(parts.mean_T, (1, 0)))
        coarse_n, fine_n = np.divmod(parts.mean_T[at_n], s.fine)
        coarse_n = stream.tables(step.parts, tables["coarse"][row, near_n], coarse_n)
        fine_n = stream.tables(step.parts, tables["fine"][row, near_n, coarse_n], fine_n)
        parts.mean_T[at_n] = coarse_n * s.fine + fine_n
        bucket_n = self.buckets(self.classes_near(step, np.pad(parts.class_T + 1, (1, 0))))
        high_n, low_n = np.divmod(parts.class_T[at_n], s.low)
        group_n = parts.group_T[at_n]
        likely_nl = self._by_group("high", tables["high"][row, bucket_n], (group_n,))
        high_n = stream.tables(step.parts, likely_nl, high_n)
        likely_nl = self._by_group("low", tables["low"][row, bucket_n, high_n], (group_n, high_n))
        low_n = stream.tables(step.parts, likely_nl, low_n)
        # Only damaged words say a class that there is not.
        parts.class_T[at_n] = np.minimum(high_n * s.low + low_n, len(self._sizes) - 1)

    def _by_group(
        self, name: str, likely_nl: np.ndarray, places: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        """Rows of the table `name` in the light of the groups of their patches."""
        return likely_nl

    def _plain(self, stream: Stream, ids_TS: np.ndarray, kept_ST: np.ndarray) -> None:
        """Write the ids of one image, or read them into `ids_TS`, all as likely."""
        whole = [(0, 0, len(ids_TS))]
        for ids_T, kept_T in zip(ids_TS.T, kept_ST, strict=True):
            sizes_T = np.where(kept_T, self._codebook, 1)
            ids_T[kept_T] = stream.uniform(whole, sizes_T, ids_T * kept_T)[kept_T]

    def _flags(self, stream: Stream, plain: list[bool]) -> list[bool]:
        """Whether each image is plain."""
        each = [(image, image, image + 1) for image in range(len(plain))]
        tables = np.repeat(_PLAIN, len(plain), 0)
        return [bool(flag) for flag in stream.tables(each, tables, np.array(plain, np.int32))]


def whole_parts(grids: Sequence[Grid]) -> list[Part]:
    """All patches of each image."""
    ends = [0, *np.cumsum([rows * cols for rows, cols in grids]).tolist()]
    return [(image, a, b) for image, (a, b) in enumerate(zip(ends, ends[1:], strict=False))]


def corners(grids: Sequence[Grid]) -> np.ndarray:
    """Place (T,) of each patch among PERIOD x PERIOD of them."""
    y, x = np.concatenate([np.indices(grid).reshape(2, -1) for grid in grids], axis=1) % PERIOD
    return y * PERIOD + x


def _count(step: Step) -> np.ndarray:
    """Neighbours (n,) of each patch, at least 1."""
    return np.maximum((step.neighbours_4n > 0).sum(0), 1)


def _nothing(kept_ST: np.ndarray, group_T: np.ndarray) -> Parts:
    """Parts to read into."""
    class_T, mean_T, kind_T = (np.zeros(group_T.shape, np.int32) for _ in range(3))
    rest_ST, sizes_ST = (np.zeros(kept_ST.shape, np.int32) for _ in range(2))
    return Parts(class_T, mean_T, kind_T, rest_ST, sizes_ST, kept_ST, group_T)


def _check(tensors: Mapping[str, np.ndarray], codebook: int) -> Shape:
    """Names, shapes and values fit, and codes that are put together stay below 65536."""
    try:
        s = Shape(*tensors["shape"].tolist())
        classes, slots = tensors["sizes"].shape
        buckets = (tensors["cuts"].shape[1] + 1) ** 2
    except (KeyError, TypeError, ValueError):
        raise ViqError("an entropy model without its tensors: copy it again") from None
    if min(*s[:4], s.low, s.meanings + 1, s.kinds + 1, classes) < 1 or max(s) > 1 << 16:
        raise ViqError(f"an entropy model of {s}: copy it again")
    means, high = s.coarse * s.fine, -(-classes // s.low)
    shapes = {
        "shape": (len(s),), "sizes": (classes, CODES_PER_PATCH), "coordinates": (classes, 2),
        "cuts": (2, tensors["cuts"].shape[1]), "coarse": (PHASES, means, s.coarse),
        "fine": (PHASES, means, s.coarse, s.fine), "high": (PHASES, buckets, high),
        "low": (PHASES, buckets, high, s.low), "kind": (PERIOD**2, 1 + s.kinds),
    }  # fmt: skip
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise ViqError(f"an entropy model of shapes {found}, expected {shapes}: copy it again")
    sizes = tensors["sizes"].astype(np.int64)
    most = max(classes * means * s.first, s.detail + s.kinds * s.meanings, int(sizes.max()))
    if sizes.min() < 1 or sizes[:, 0].max() > s.first or most > codebook:
        raise ViqError("an entropy model whose codes are outside of the codebook: copy it again")
    if s.kinds and (sizes[:, -1].max() > s.detail or not s.meanings):
        raise ViqError("an entropy model whose detail overlaps meaning: copy it again")
    counts = [tensors[name].astype(np.int64) for name in ("coarse", "fine", "high", "low", "kind")]
    if min(int(part.min()) for part in counts) < 1 or max(int(p.max()) for p in counts) >= 1 << 16:
        raise ViqError("an entropy model with counts outside of 1 to 65535: copy it again")
    cuts, reach = tensors["cuts"].astype(np.int64), 1 << 15
    if (np.diff(cuts) < 0).any() or np.abs(tensors["coordinates"].astype(np.int64)).max() > reach:
        raise ViqError("an entropy model whose buckets do not rise: copy it again")
    return s
