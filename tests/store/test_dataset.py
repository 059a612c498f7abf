"""Codes as a data set: every sample once, in one order, whatever the ranks and workers."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from code_stores import INFO, codes_of, opened, taken, write_store
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from viq.core.types import CodesError, ViqError
from viq.store.dataset import CodeDataset
from viq.store.folder import shard_name
from viq.store.order import Order, cut
from viq.store.rows import CodesWriter


def test_random_access(store: Path) -> None:
    data = opened(store)
    assert len(data) == 356
    for number in (0, 29, 30, 55, 354, 355, -1):
        sample = data[number]
        at = number % 356
        assert sample.key == f"key{at}"
        assert sample.codes == (codes_of(at),)
        assert sample.extras == {"caption": f"caption {at}"}
    assert data["key77"].codes == (codes_of(77),)
    assert "key77" in data and "nothing" not in data and 5 not in data
    with pytest.raises(IndexError):
        data[356]
    with pytest.raises(KeyError):
        data["nothing"]


def test_columns(store: Path) -> None:
    assert opened(store, columns=())[3].extras == {}
    assert opened(store, columns=["caption"])[3].extras == {"caption": "caption 3"}


def test_one_file(store: Path) -> None:
    data = opened(store / shard_name(3))
    assert len(data) == 300
    assert data[5].codes == (codes_of(60),)


def test_samples_of_several_images(tmp_path: Path) -> None:
    data = opened(write_store(tmp_path / "s", [100, 90], images=3))
    assert len(data) == 190
    for number in (0, 85, 86, 189):  # 86: its images lie in two row groups
        images = tuple(codes_of(number * 3 + image) for image in range(3))
        assert data[number].codes == images
        assert data[number].patches == data.patches(np.array([number]))[0]


def test_in_order(store: Path) -> None:
    keys = [sample.key for sample in opened(store)]
    assert keys == [f"key{i}" for i in range(356)]


def test_shuffled_epochs_differ_and_repeat(store: Path) -> None:
    data = opened(store, shuffle=1)
    epochs = [[sample.key for sample in data] for _ in range(2)]
    assert data.epoch == 2
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"key{i}" for i in range(356))
    assert [sample.key for sample in opened(store, shuffle=1)] == epochs[0]
    assert [sample.key for sample in opened(store, shuffle=2)] != epochs[0]


def test_the_order_stays_what_it_is() -> None:
    """A change here, or in the shuffles of numpy, makes every state of a running training void."""
    order = Order(samples=(3, 0, 4, 2), seed=7, block=4)
    epochs = [[(p, b.tolist()) for p, b in order.blocks(epoch)] for epoch in range(2)]
    assert epochs == [
        [(0, [1, 0, 8, 2, 7]), (5, [4, 3, 5, 6])],
        [(0, [0, 7, 1, 8, 2]), (5, [5, 3, 6, 4])],
    ]


@pytest.mark.parametrize("seed", [None, 0, 3])
def test_any_position_of_an_order_by_itself(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(samples=[3, 0, 4, 2, 7, 0], seed=seed, block=5)
    whole = [[n for _, found in order.blocks(e) for n in found.tolist()] for e in range(3)]
    asked = [(e, p) for e in range(3) for p in range(order.total)]
    np.random.default_rng(0).shuffle(asked)
    assert [order.at(e, p) for e, p in asked] == [whole[e][p] for e, p in asked]

    made, blocks = [], Order.blocks
    monkeypatch.setattr(Order, "blocks", lambda *at: made.append(at[1:]) or blocks(*at))
    fresh = Order(samples=order.samples, seed=1, block=5)
    ahead = [fresh.at(0, p) for p in range(16)], [fresh.at(0, max(0, p - 5)) for p in range(16)]
    assert ahead[0][:11] == ahead[1][5:]
    assert len(made) == len(list(blocks(fresh, 0)))  # each block once, though two go through it


def test_small_blocks_keep_to_their_shards() -> None:
    order = Order(samples=[10] * 6, seed=3, block=20)
    blocks = [numbers for _, numbers in order.blocks(0)]
    assert [len(set(numbers // 10)) for numbers in blocks] == [2, 2, 2]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch(store: Path, world: int) -> None:
    parts = [[s.key for s in opened(store, shuffle=1, rank=r, world=world)] for r in range(world)]
    whole = [s.key for s in opened(store, shuffle=1)]
    assert [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)] == whole


@given(
    sizes=st.lists(st.integers(1, 30), max_size=40),
    shards=st.integers(1, 4),
    tokens=st.one_of(st.none(), st.integers(1, 60)),
    samples=st.one_of(st.none(), st.integers(1, 7)),
    start=st.integers(0, 45),
    seed=st.one_of(st.none(), st.integers(0, 3)),
)
def test_cut(
    sizes: list[int],
    shards: int,
    tokens: int | None,
    samples: int | None,
    start: int,
    seed: int | None,
) -> None:
    counts = [len(part) for part in np.array_split(np.array(sizes), shards)]
    order = Order(samples=counts, seed=seed, block=5)
    patches = np.array(sizes, np.int64)

    def batches(start: int) -> list[tuple[int, int, list[int]]]:
        found = cut(
            order, 0, start, patches_of=lambda n: patches[n], tokens=tokens, samples=samples
        )
        return [(b.start, b.stop, b.samples.tolist()) for b in found]

    whole = np.concatenate([np.empty(0, int), *(numbers for _, numbers in order.blocks(0))])
    at = start
    for first, last, numbers in batches(start):
        assert (first, last - first) == (at, len(numbers))
        assert numbers == whole[first:last].tolist() != []
        assert tokens is None or patches[numbers].sum() <= tokens or len(numbers) == 1
        assert samples is None or len(numbers) <= samples
        if last < len(whole):  # one more would not have fitted
            more = patches[whole[first : last + 1]].sum()
            assert (tokens and more > tokens) or (samples and len(numbers) == samples)
        at = last
    assert at == max(start, len(whole))
    for first, _, _ in batches(0)[:5]:  # a cut can go on at any of its borders
        assert batches(first) == [b for b in batches(0) if b[0] >= first]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("limits", [{"tokens": 60}, {"samples": 7}, {"tokens": 40, "samples": 3}])
def test_resumes_on_other_ranks_and_workers(store: Path, limits: dict[str, int]) -> None:
    whole = taken(opened(store, shuffle=5), **limits)
    assert sorted(key for batch in whole for key in batch) == sorted(f"key{i}" for i in range(356))
    state, got = {}, []
    for world, workers, steps in ((1, 0, 3), (2, 0, 2), (3, 2, 2), (1, 3, 4), (2, 2, None)):
        ranks = []
        for rank in range(world):
            data = opened(store, shuffle=5, rank=rank, world=world)
            if state:
                data.load_state_dict(state)
            ranks.append((data, taken(data, steps, workers=workers, even=False, **limits)))
        longest = max(len(batches) for _, batches in ranks)
        got += [batches[i] for i in range(longest) for _, batches in ranks if i < len(batches)]
        states = [json.dumps(data.state_dict()) for data, _ in ranks]
        assert len(set(states)) == 1
        state = json.loads(states[0])
    assert got == whole
    assert (state["epoch"], state["position"]) == (1, 0)


def test_even_ranks(store: Path) -> None:
    counts = {len(taken(opened(store, rank=r, world=3), samples=10)) for r in range(3)}
    assert counts == {36 // 3}


def test_state_of_another_store_or_order_is_refused(store: Path, tmp_path: Path) -> None:
    state = opened(store, shuffle=5).state_dict()
    with pytest.raises(ViqError, match="shuffle was 5, is 6"):
        opened(store, shuffle=6).load_state_dict(state)
    with pytest.raises(ViqError, match="store was"):
        opened(write_store(tmp_path / "s", [30]), shuffle=5).load_state_dict(state)


def test_limits_are_asked_for(store: Path) -> None:
    for tokens, samples in ((None, None), (0, None), (None, -1)):
        with pytest.raises(ViqError, match="above 0"):
            next(opened(store).batches(tokens=tokens, samples=samples))


def passes(loader: DataLoader, count: int = 1) -> list[list[str]]:
    return [[sample.key for batch in loader for sample in batch] for _ in range(count)]


@pytest.mark.parametrize(
    ("start", "persistent"), [("fork", False), ("fork", True), ("spawn", True)]
)
def test_epochs_advance_in_the_workers_of_a_loader(
    store: Path, start: str, persistent: bool
) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    alone = opened(store, shuffle=0)
    epochs = [[sample.key for sample in alone] for _ in range(4)]
    data = opened(store, shuffle=0)
    loader = DataLoader(
        data, batch_size=None, num_workers=2, collate_fn=as_it_is, prefetch_factor=1,
        persistent_workers=persistent, multiprocessing_context=start,
    )  # fmt: skip
    assert [[s.key for s in loader] for _ in range(2)] == epochs[:2]
    assert (data.epoch, data.state_dict()["position"]) == (2, 0)
    next(iter(loader))  # left early: the next pass is another all the same
    assert data.epoch == 2
    assert [s.key for s in loader] == epochs[3]
    data.set_epoch(1)
    assert [s.key for s in loader] == epochs[1] and data.epoch == 2


def test_what_is_not_shared_is_sent_as_a_copy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor would be moved into shared memory as it is sent, away from what writes to it."""

    def fail(self: object) -> None:
        raise RuntimeError("no shared memory")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    data = opened(store, shuffle=0)
    for epoch in (1, 2):
        data.set_epoch(epoch)
        sent = pickle.loads(ForkingPickler.dumps(data))
        assert (sent.epoch, data.epoch) == (epoch, epoch)


def as_it_is(sample: object) -> object:
    """Unlike a lambda, this can be sent to workers."""
    return sample


def test_a_loader_goes_on_in_the_middle_of_an_epoch_once(store: Path) -> None:
    data = opened(store, shuffle=0)
    order = [[sample.key for sample in data] for _ in range(2)]
    data.load_state_dict({**data.state_dict(), "epoch": 0, "position": 300})
    loader = DataLoader(data, batch_size=None, num_workers=2, collate_fn=as_it_is)
    assert [s.key for s in loader] == order[0][300:]
    assert [s.key for s in loader] == order[1]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_has_as_many_samples_as_it_says(store: Path, world: int, workers: int) -> None:
    total = 0
    for rank in range(world):
        data = opened(store, shuffle=0, rank=rank, world=world)
        loader = DataLoader(data, batch_size=7, num_workers=workers, collate_fn=list)
        (found,) = passes(loader)
        assert len(found) == len(data) and data.total == 356
        total += len(found)
    assert total == 356


def test_set_epoch(store: Path) -> None:
    data = opened(store, shuffle=3)
    epochs = [[sample.key for sample in data] for _ in range(3)]
    for epoch in (1, 0, 2):
        data.set_epoch(epoch)
        assert [sample.key for sample in data] == epochs[epoch]
    data.set_epoch(1)
    first = [sample.key for _, sample in zip(range(100), data, strict=False)]
    data.set_epoch(1)  # the present one: goes on where it stands
    assert first + [sample.key for sample in data] == epochs[1]
    for epoch in (-1, 1.0, "1", None, True, 2**60):
        with pytest.raises(ViqError, match="epoch"):
            data.set_epoch(epoch)  # type: ignore[arg-type]


NONSENSE = (None, -1, 1 << 80, 1.5, float("nan"), float("inf"), "1", True, [0], {}, b"0")


@pytest.mark.parametrize("name", ["epoch", "position", "store", "shuffle", "block"])
def test_states_that_are_none(store: Path, name: str) -> None:
    data = opened(store, shuffle=1)
    state = data.state_dict()
    for value in NONSENSE:
        with pytest.raises(ViqError, match=name) as error:
            data.load_state_dict({**state, name: value})
        assert "\n" not in str(error.value)
    with pytest.raises(ViqError, match=name):
        data.load_state_dict({k: v for k, v in state.items() if k != name})
    for other in (None, [], "state", 7):
        with pytest.raises(ViqError, match="cannot resume"):
            data.load_state_dict(other)  # type: ignore[arg-type]
    with pytest.raises(ViqError, match="position"):
        data.load_state_dict({**state, "position": 357})
    data.load_state_dict({**state, "epoch": 3, "position": 356})
    assert list(data) == [] and data.epoch == 4


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", [50, 60])
    (path / shard_name(1)).unlink()
    data = opened(path)
    assert data[49].key == "key49"
    for workers in (0, 1):
        with pytest.raises(CodesError, match="part-00001") as error:
            taken(data, samples=10, workers=workers)
        assert "\n" not in str(error.value)
    (path / shard_name(1)).write_bytes((path / shard_name(0)).read_bytes())
    with pytest.raises(CodesError, match="part-00001"):
        data[60]


def test_keys_of_any_script_and_none_at_all(tmp_path: Path) -> None:
    """They are read around Arrow's own access to strings."""
    keys = ["", "a/ä.jpg", "日本/語.png", "\N{GRINNING FACE}", ""] * 60  # over a group of rows
    with CodesWriter(tmp_path / "codes.parquet", INFO) as writer:
        for key in keys:
            writer.add(key, None)
    data = CodeDataset(tmp_path / "codes.parquet", cache=tmp_path / "cache")
    assert [data[i].key for i in range(len(data))] == keys
    with CodesWriter(tmp_path / "empty.parquet", INFO) as writer:
        writer.add("", None)
    assert CodeDataset(tmp_path / "empty.parquet", cache=tmp_path / "cache")[0].key == ""


HELD = """
import sys
import viq

batches = None
if __name__ == "__main__":
    data = viq.CodeDataset(sys.argv[1], shuffle=0, cache=sys.argv[2])
    batches = data.batches(tokens=64, workers=1)
    next(batches)
"""


def test_batches_that_a_script_holds_to_its_end_say_nothing(store: Path, tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, tmp_path / "held.py", store, tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
