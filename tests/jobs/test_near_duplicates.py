"""Near-duplicates: which pairs are compared, in how much memory."""

import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from viq.core.codes import Codes
from viq.jobs.store import near_duplicates
from viq.jobs.store.near_duplicates import by_overlap, code_set, overlap
from viq.store.rows import CodesWriter, StoreInfo

STAMP, LEVELS = "0123456789abcdef", (8, 8, 8, 5, 5, 5)
INFO = StoreInfo(model="viq-test", fingerprint=STAMP, levels=LEVELS)


def write(path: Path, images: list[np.ndarray]) -> Path:
    """Ids of images (rows, cols, 4), under the names "0", "1", .."""
    with CodesWriter(path, INFO) as writer:
        for number, ids in enumerate(images):
            size = (16 * ids.shape[0], 16 * ids.shape[1])
            writer.add(str(number), Codes(ids.astype(np.uint16), size, 0, STAMP))
    return path


def drawn(count: int, side: int = 6) -> list[np.ndarray]:
    draw, most = np.random.default_rng(0), int(np.prod(LEVELS))
    return [draw.integers(0, most, (side, side, 4)) for _ in range(count)]


@pytest.fixture
def some(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """40 images, of which each fifth is seen twice more, with ever more rows replaced."""
    images = drawn(40)
    for first in range(0, 40, 5):
        for rows in (1, 2):
            images.append(np.concatenate([images[first][rows:], images[first + 1][:rows]]))
    return write(tmp_path / "codes.parquet", images), images


def pairs_of(path: Path, threshold: float) -> set[tuple[str, str, float]]:
    found = by_overlap(path, threshold)["pairs"]
    assert len({(pair["a"], pair["b"]) for pair in found}) == len(found)
    return {(pair["a"], pair["b"], pair["similarity"]) for pair in found}


def test_all_pairs_that_are_alike_are_found(some: tuple[Path, list[np.ndarray]]) -> None:
    path, images = some
    sets = [code_set(Codes(ids.astype(np.uint16), (96, 96), 0, STAMP)) for ids in images]
    alike = {(a, b): overlap(sets[a], sets[b]) for a, b in combinations(range(len(sets)), 2)}
    wanted = {(str(a), str(b), round(s, 4)) for (a, b), s in alike.items() if s >= 0.6}
    assert len(wanted) >= 16 and pairs_of(path, 0.6) == wanted


@pytest.mark.parametrize("held", [1, 300, 1000])
def test_little_memory_finds_the_same(
    some: tuple[Path, list[np.ndarray]], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = some
    wanted = pairs_of(path, 0.5)
    seen: list[int] = []
    compared = near_duplicates._compared

    def watched(store, pairs, threshold):  # type: ignore[no-untyped-def]
        seen.append(len(np.unique(pairs)))
        return compared(store, pairs, threshold)

    monkeypatch.setattr(near_duplicates, "_HELD", held)
    monkeypatch.setattr(near_duplicates, "_compared", watched)
    assert pairs_of(path, 0.5) == wanted
    assert len(seen) > 1 and max(seen) <= max(2, held // 140)  # 144 codes each, few of them twice


def test_crowds_are_compared_with_their_first_alone(tmp_path: Path) -> None:
    one, *others = drawn(30)
    found = pairs_of(write(tmp_path / "many.parquet", [*others, *[one] * 101]), 0.9)
    assert found == {("29", str(number), 1.0) for number in range(30, 130)}
    found = pairs_of(write(tmp_path / "few.parquet", [*others, *[one] * 4]), 0.9)
    assert found == {(str(a), str(b), 1.0) for a, b in combinations(range(29, 33), 2)}


def test_no_image_has_no_twin(tmp_path: Path) -> None:
    assert by_overlap(write(tmp_path / "none.parquet", []))["pairs"] == []
    assert by_overlap(write(tmp_path / "one.parquet", drawn(1)))["pairs"] == []


def test_memory_is_what_sketches_take(tmp_path: Path) -> None:
    """Bytes an image, of stores that differ in their length alone."""
    images, peaks = drawn(4096, 2), []
    for count in (2048, 4096):
        path = write(tmp_path / f"{count}.parquet", images[:count])
        by_overlap(path)  # what is made once
        tracemalloc.start()
        by_overlap(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 256 of sketches, 4 of sizes, 40 while a band is sorted; a row of an index entry was 1500.
    assert (peaks[1] - peaks[0]) / 2048 < 400
