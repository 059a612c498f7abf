"""Packed batches: what the samples say one by one, bit for bit, however they are gathered."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from code_stores import INFO, codes_of, opened, unpacked, write_store
from hypothesis import given
from hypothesis import strategies as st

import viq
from viq.core.types import CodesError, ViqError
from viq.store import batches as batches_module
from viq.store import runs as runs_module
from viq.store.columns import Extras
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, Index, Shard, shard_name
from viq.store.packed import PackedCodes
from viq.store.rows import CodesWriter, StoreInfo
from viq.store.runs import Group, Runs
from viq.store.views import CodeSample

COLUMNS = ("text_ids", "caption", "score", "weights")


def extras_of(number: int) -> dict[str, Any]:
    draw = np.random.default_rng(number)
    return {
        "text_ids": draw.integers(0, 1 << 40, draw.integers(0, 9)).tolist(),
        "caption": "wörter " * int(draw.integers(0, 3)),
        "score": float(number) / 3,
        "weights": draw.random(draw.integers(0, 3)).tolist(),
        "mixed": {"number": number},
    }


def write_many(folder: Path, shards: list[int]) -> Path:
    """A store whose samples have no image, one, or more, and columns of all that can be packed."""
    folder.mkdir()
    extras = Extras.inferred([{**extras_of(1), "text_ids": [1 << 40], "weights": [0.5]}])
    listed, number, rows = [], 0, 0
    for place, samples in enumerate(shards):
        path, before = folder / shard_name(place), rows
        with CodesWriter(path, INFO, extras) as writer:
            for at in range(number, number + samples):
                packed = extras.pack(extras_of(at))
                for image in range(max(1, at % 4)):
                    codes = codes_of(at * 4 + image) if at % 4 else None
                    writer.add(f"key{at}", codes, image, packed)
                    rows += 1
        inputs = (number, number + samples)
        size = path.stat().st_size
        listed.append(
            Shard(name=path.name, rows=rows - before, inputs=inputs, bytes=size, sha256="")
        )
        number += samples
    totals = {"rows": rows, "failures": 0}
    index = Index(info=INFO, inputs=number, shards=tuple(listed), totals=totals)
    (folder / INDEX).write_bytes(index.to_json())
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many(tmp_path_factory.mktemp("many") / "s", [30, 1, 300, 25])


def require_same(packed: PackedCodes, samples: list[CodeSample], data: CodeDataset) -> None:
    """Raises AssertionError unless it holds exactly these samples, in this order."""
    assert [data[number].key for number in packed.samples.tolist()] == [s.key for s in samples]
    assert np.diff(packed.images).tolist() == [len(sample.codes) for sample in samples]
    codes = [item for sample in samples for item in sample.codes]
    ids = [item.ids.reshape(-1, 4) for item in codes]
    assert np.array_equal(packed.ids, np.concatenate([np.empty((0, 4), np.uint16), *ids]))
    assert packed.ids.dtype == np.uint16 and packed.ids.flags.writeable
    assert np.diff(packed.offsets).tolist() == [len(part) for part in ids]
    assert packed.offsets[0] == 0 and packed.images[0] == 0
    assert packed.grids_hw.tolist() == [list(item.grid) for item in codes]
    assert packed.sizes_hw.tolist() == [list(item.size) for item in codes]
    assert packed.tiles.tolist() == [item.tile for item in codes]
    for name, column in packed.columns.items():
        found = [column[i] for i in range(len(samples))]
        if name == "caption":
            assert [part.tobytes().decode() for part in found] == [s.extras[name] for s in samples]
        else:
            wanted = [np.atleast_1d(sample.extras[name]).tolist() for sample in samples]
            assert [part.tolist() for part in found] == wanted


def pairs(path: Path, **options: Any) -> Iterator[tuple[PackedCodes, list[CodeSample]]]:
    columns = {"columns": options.pop("columns", ())}
    opening = {k: options.pop(k) for k in ("shuffle", "rank", "world", "block") if k in options}
    plain = opened(path, **opening, **columns).batches(**{**options, "workers": 0})
    packed = opened(path, **opening, **columns).batches(**options, packed=True)
    # All packed batches are kept, so that one that shares memory with a later one is seen.
    return zip(list(packed), list(plain), strict=True)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize(
    "limits", [{"tokens": 40}, {"tokens": 400, "samples": 7}, {"samples": 11}, {"tokens": 1}]
)
def test_as_sample_by_sample(
    many: Path, workers: int, shuffle: int | None, limits: dict[str, int]
) -> None:
    data, count = opened(many, columns=COLUMNS), 0
    options = {"shuffle": shuffle, "block": 50, "workers": workers, "columns": COLUMNS}
    for packed, samples in pairs(many, **options, **limits):
        require_same(packed, samples, data)
        assert list(packed.columns) == list(COLUMNS)
        count += len(packed)
    assert count == data.total


@pytest.mark.parametrize("even", [True, False])
def test_ranks_share_the_batches(store: Path, even: bool) -> None:
    data, numbers = opened(store, columns=()), []
    for rank in range(3):
        for packed, samples in pairs(
            store, shuffle=0, rank=rank, world=3, tokens=60, workers=2, even=even
        ):
            require_same(packed, samples, data)
            numbers += packed.samples.tolist()
    assert len(set(numbers)) == len(numbers) and (even or len(numbers) == data.total)


def test_resumes_in_the_middle_of_what_was_gathered_together(many: Path) -> None:
    whole = list(opened(many, columns=(), shuffle=1).batches(tokens=30, packed=True))
    for stop, world, workers in ((1, 1, 2), (4, 2, 0), (30, 3, 1)):
        data = opened(many, columns=(), shuffle=1)
        found = data.batches(tokens=30, packed=True, workers=2)
        for _ in range(stop):
            next(found)
        found.close()  # type: ignore[attr-defined]
        rest = []
        for rank in range(world):
            more = opened(many, columns=(), shuffle=1, rank=rank, world=world)
            more.load_state_dict(data.state_dict())
            rest.append(list(more.batches(tokens=30, packed=True, workers=workers, even=False)))
        turns = [part[i] for i in range(len(rest[0])) for part in rest if i < len(part)]
        assert len(turns) == len(whole) - stop
        for again, before in zip(turns, whole[stop:], strict=True):
            assert np.array_equal(again.ids, before.ids)
            assert np.array_equal(again.samples, before.samples)


def test_rotten_bits_of_the_cache_never_give_other_codes(tmp_path: Path) -> None:
    path = write_many(tmp_path / "s", [90, 20])
    whole = list(opened(path, columns=COLUMNS).batches(samples=13, packed=True))
    for file in unpacked(tmp_path / "cache"):
        good, draw = file.read_bytes(), np.random.default_rng(0)
        for _ in range(40):
            bad = bytearray(good)
            bad[draw.integers(len(bad))] ^= 1 << draw.integers(8)
            file.write_bytes(bad)
            found = list(opened(path, columns=COLUMNS).batches(samples=13, packed=True))
            for one, other in zip(found, whole, strict=True):
                assert np.array_equal(one.ids, other.ids)
                for name in COLUMNS:
                    assert np.array_equal(one.columns[name].values, other.columns[name].values)
            assert file.read_bytes() == good


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_named(tmp_path: Path, workers: int) -> None:
    path = write_store(tmp_path / "s", [30, 30])
    file = path / shard_name(1)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CodesError, match=shard_name(1)):
        list(opened(path).batches(samples=8, packed=True, workers=workers))


def test_columns_that_cannot_be_packed(many: Path) -> None:
    """By name they are refused; of all columns, those that can be packed are taken."""
    with pytest.raises(CodesError, match="mixed cannot be packed"):
        next(opened(many, columns=["mixed"]).batches(samples=3, packed=True))
    with pytest.raises(CodesError, match="has no column nothing|nothing cannot be packed"):
        next(opened(many, columns=["nothing"]).batches(samples=3, packed=True))
    batch = next(opened(many).batches(samples=3, packed=True))
    assert sorted(batch.columns) == sorted(COLUMNS)
    with pytest.raises(ViqError, match="no samples to collate"):
        next(opened(many).batches(samples=3, packed=True, collate=len))  # type: ignore[call-overload]


def test_numbers_that_are_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    extras = Extras.inferred([{"score": 1.0}])
    file = tmp_path / "s" / "codes.parquet"
    with CodesWriter(file, INFO, extras) as writer:
        writer.add("a", codes_of(1), 0, extras.pack({"score": None}))
    with pytest.raises(CodesError, match="column score lacks values"):
        next(opened(file).batches(samples=1, packed=True))
    assert next(opened(file, columns=()).batches(samples=1, packed=True)).columns == {}


@pytest.mark.parametrize("shared", [True, False])
def test_batches_larger_than_the_memory_that_workers_share(
    store: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, start: str
) -> None:
    monkeypatch.setattr(batches_module, "_PATCHES_TOGETHER", 15)
    if not shared:

        def fail(self: Any) -> None:
            raise RuntimeError("no shared memory")

        monkeypatch.setattr(batches_module.torch.Tensor, "share_memory_", fail)
    data = opened(store, columns=())
    found = list(pairs(store, shuffle=2, tokens=25, workers=2))
    assert any(len(packed.ids) > 15 for packed, _ in found)
    for packed, samples in found:
        require_same(packed, samples, data)


@given(st.data())
def test_runs_are_copied_wherever_they_lie(drawing: st.DataObject) -> None:
    """Files that lie far apart are gathered in parts; here all that do not touch."""
    memory = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8)
    address, groups, wanted, at = memory.ctypes.data, [], [], 0
    for _ in range(drawing.draw(st.integers(1, 4))):
        at += drawing.draw(st.integers(0, 300))
        lengths = drawing.draw(st.lists(st.integers(0, 20), min_size=1, max_size=9))
        ends = np.cumsum([at % 7, *lengths])
        groups.append(Group(address + at - at % 7, ends))
        wanted += [memory[at - at % 7 + a : at - at % 7 + b] for a, b in zip(ends, ends[1:])]  # noqa: B905
        at += sum(lengths)
    numbers = np.array(
        drawing.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=12)), np.int64
    )
    expected = np.concatenate([np.empty(0, np.uint8), *(wanted[n] for n in numbers)])
    for apart in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if apart:
                patch.setattr(
                    runs_module, "_near", lambda spans: [(i, i + 1) for i in range(len(spans))]
                )
            assert np.array_equal(Runs(groups, memory).take(numbers), expected)


def test_files_with_some_room_between_them_are_one_array() -> None:
    """Of several arrays, all is copied twice; of a far one, much room would be made for nothing."""
    memory = np.zeros(100_000, np.uint8)
    ends = np.arange(0, 1001, 100)

    def arrays(*places: int) -> int:
        return len(Runs([Group(memory.ctypes.data + at, ends) for at in places], memory)._clusters)

    assert arrays(0, 1000) == 1
    assert arrays(0, 5000, 14000) == 1
    assert arrays(0, 90_000) == 2
    assert arrays(0, 1000, 90_000, 91_000) == 2


def test_stores_with_counts_have_four_codes_a_patch(tmp_path: Path) -> None:
    """As by samples: ids are four always, whatever the counts."""
    info = replace(INFO, refinement="00000000000000cd")
    file = tmp_path / "codes.parquet"
    with CodesWriter(file, info) as writer:
        for number in range(40):
            plain = codes_of(number)
            counts = np.random.default_rng(number).integers(1, 7, plain.grid).astype(np.uint8)
            extra = np.arange(np.maximum(counts.astype(int) - 4, 0).sum()).astype(np.uint16)
            counted = replace(plain, counts=counts, extra=extra, refinement=info.refinement)
            writer.add(f"key{number}", counted)
    data = opened(file)
    for packed, samples in pairs(file, shuffle=0, tokens=50):
        require_same(packed, samples, data)


def test_compressed_stores(tmp_path: Path) -> None:
    pytest.importorskip("constriction")
    tokenizer = viq.load("viq-tiny")
    codes = tokenizer.encode([np.full((40, 50 + i, 3), 9 * i, np.uint8) for i in range(12)])
    info = StoreInfo(
        model=tokenizer.config.name,
        fingerprint=tokenizer.fingerprint,
        levels=tokenizer.levels,
        entropy=tokenizer.entropy.digest,
    )
    with CodesWriter(tmp_path / "codes.parquet", info) as writer:
        for number, item in enumerate(codes):
            writer.add(f"key{number}", item)
    data = opened(tmp_path / "codes.parquet")
    for packed, samples in pairs(tmp_path / "codes.parquet", shuffle=0, samples=5):
        require_same(packed, samples, data)
