"""Small entropy models of every kind, with numbers from a seed."""

from dataclasses import replace

import numpy as np

from viq.codec.class_tables import ClassTables
from viq.codec.completion import Completion
from viq.codec.counted_tables import GROUPS, CountedTables
from viq.codec.level_network import LevelNetwork
from viq.codec.phases import PHASES
from viq.core.codes import Codes, detail_slots, extra_codes
from viq.core.types import grid_of

LEVELS, CODEBOOK = (5, 4, 3), 60
K, WIDE, HIDDEN = 12, 5, 8
STAMP = "00000000000000aa"


def level_network(seed: int = 0, stamp: str = STAMP) -> LevelNetwork:
    draw = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return draw.integers(-200, 200, shape).astype(np.int16)

    def bias(*shape: int) -> np.ndarray:
        return draw.integers(-30000, 30000, shape).astype(np.int32)

    tensors = {
        "context.0.weight": some(HIDDEN, 3 * (K + 1)), "context.0.bias": bias(HIDDEN),
        "embed": some(K, WIDE, HIDDEN), "head.weight": some(K, WIDE, HIDDEN),
        "head.bias": bias(K, WIDE),
    }  # fmt: skip
    return LevelNetwork(tensors, LEVELS, stamp)


def class_tables(seed: int = 0, stamp: str = STAMP) -> ClassTables:
    """Of 3 classes, means of 2 times 2 digits and a rest of 5: 60 codes. The last code is detail
    below 40, then meaning of 4 kinds of 5 ids."""
    draw = np.random.default_rng(seed)

    def counts(*shape: int) -> np.ndarray:
        return draw.integers(1, 60_000, shape).astype(np.uint16)

    tensors = {
        "shape": np.array([2, 2, 5, 40, 4, 5, 2], np.int32),
        "sizes": np.array([[5, 60, 50, 40], [4, 59, 1, 30], [1, 60, 60, 20]], np.int32),
        "coordinates": draw.integers(-99, 99, (3, 2)).astype(np.int16),
        "cuts": np.array([[-300, 0, 500], [-100, 90, 400]], np.int32),
        "coarse": counts(PHASES, 4, 2), "fine": counts(PHASES, 4, 2, 2),
        "high": counts(PHASES, 16, 2), "low": counts(PHASES, 16, 2, 2), "kind": counts(16, 5),
    }  # fmt: skip
    return ClassTables(tensors, LEVELS, stamp)


def counted_tables(seed: int = 0, stamp: str = STAMP) -> CountedTables:
    """The tables of `class_tables`, for counts."""
    draw, plain = np.random.default_rng(seed + 1), class_tables(seed).tensors
    radices = np.ones((3, 4, 2), np.uint8)
    radices[:, :, 1] = [[5, 6, 5, 4], [4, 59, 1, 3], [1, 6, 10, 2]]
    radices[:, :, 0] = plain["sizes"] // radices[:, :, 1]
    places = []
    for slots, count in Completion.CASES:
        known = radices[:, :count].astype(int).prod(1)
        rest = radices[:, count:slots].astype(int).prod(1)
        places.append(draw.integers(0, np.repeat(rest.ravel(), known.ravel())))
    tensors = plain | {
        "radices": radices, "nearest": np.concatenate(places).astype(np.uint16),
        "group_high": draw.integers(1, 60_000, (GROUPS, 2)).astype(np.uint16),
        "group_low": draw.integers(1, 60_000, (GROUPS, 2, 2)).astype(np.uint16),
    }  # fmt: skip
    return CountedTables(tensors, LEVELS, stamp)


KINDS = {"levels": level_network, "tables": class_tables, "counted": counted_tables}


def codes_of(size: tuple[int, int], seed: int = 0, tile: int = 0, stamp: str = STAMP) -> Codes:
    """Any codes: for tables, most of such images are stored plain."""
    ids = np.random.default_rng(seed).integers(0, CODEBOOK, (*grid_of(size), 4)).astype(np.uint16)
    return Codes(ids, size, tile, stamp)


def counted(codes: Codes, seed: int = 0, most: int = 12) -> Codes:
    """The same with counts, and with meaning in the fourth codes of even places."""
    draw, slots = np.random.default_rng(seed), detail_slots(codes.grid, codes.tile, True)
    counts = draw.integers(1, most, codes.grid).astype(np.uint8)
    ids, meant = codes.ids.copy(), slots < 4
    ids[meant, 3] = draw.integers(40, 60, int(meant.sum()))
    ids[~meant, 3] %= 20
    extra = draw.integers(0, 1 << 16, int(extra_codes(counts, slots).sum())).astype(np.uint16)
    return replace(
        codes, ids=ids, counts=counts, extra=extra, meaning=True, refinement="00000000000000cc"
    )


def usual_codes(size: tuple[int, int], seed: int = 0, tile: int = 0) -> Codes:
    """Codes that the tables of `class_tables` know."""
    draw, sizes = np.random.default_rng(seed), class_tables().tensors["sizes"]
    grid = grid_of(size)
    chosen = draw.integers(0, 3, grid)
    rest = draw.integers(0, 1 << 30, (*grid, 4)) % sizes[chosen]
    rest[..., 0] += (chosen * 4 + draw.integers(0, 4, grid)) * 5
    meant = draw.random(grid) < 0.3
    rest[meant, 3] = draw.integers(40, 60, int(meant.sum()))
    return Codes(rest.astype(np.uint16), size, tile, STAMP)
