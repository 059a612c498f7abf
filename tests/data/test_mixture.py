"""Corpora mixed by weight into packed micro-batches: shares, epochs, budgets, bad samples, and a
stream that goes on from anywhere.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from viq.core.types import ViqError
from viq.data.batching.mixture import Mixture, Packer, Part, Position, Skipped


class Numbers:
    """Example number i of "a" is "a<i>"; those in `bad` cannot be used."""

    def __init__(self, name: str, length: int | None = None, bad: Sequence[int] = ()) -> None:
        self.name, self.length, self.bad = name, length, set(bad)
        self.samples = None if length is None else [length]

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def example(self, index: int, rng: random.Random) -> Any:
        if index in self.bad:
            raise ViqError(f"{self.key(index)}: broken")
        return f"{self.name}{index}", rng.randrange(1, 10)


def mixture(*corpora: Any, weights: Sequence[float] = (), lanes: int = 1, seed: int = 0) -> Mixture:
    weights = weights or [1.0] * len(corpora)
    parts = [Part(corpus=c, weight=w) for c, w in zip(corpora, weights, strict=True)]
    return Mixture(parts, seed=seed, lanes=lanes)


def drawn(mixed: Mixture, lane: int, count: int) -> list[tuple[int, int]]:
    """(part, index) of the first draws of a lane."""
    found, position = [], mixed.start()
    for _ in range(count):
        part, index, position = mixed.draw(lane, position)
        found.append((part, index))
    return found


class Packing:
    """Micro-batches of (name, cost) examples, the cost made up when an example is drawn."""

    def __init__(self, mixed: Mixture, lane: int = 0, budgets: tuple[int, ...] = (20,)) -> None:
        self.mixed, self.lane, self.budgets, self.skipped = mixed, lane, budgets, Skipped()

    def __call__(self, count: int, position: Position | None = None) -> list[Any]:
        with ThreadPoolExecutor(3) as pool:
            packer: Packer[Any] = Packer(
                self.mixed,
                self.lane,
                position or self.mixed.start(),
                prepare=lambda example: example,  # type: ignore[arg-type,return-value]
                cost=self.cost,
                budgets=self.budgets,
                skipped=self.skipped,
                pool=pool,
            )
            return list(islice(iter(packer), count))

    def cost(self, example: Any) -> tuple[int, ...]:
        return (example[1], 10 - example[1])[: len(self.budgets)]


def test_shares_follow_the_weights() -> None:
    mixed = mixture(Numbers("a"), Numbers("b", 50), Numbers("c"), weights=(6, 3, 0))
    shares = Counter(part for part, _ in drawn(mixed, 0, 3000))
    assert set(shares) == {0, 1}
    assert shares[0] / 3000 == pytest.approx(2 / 3, abs=0.03)  # four standard deviations


@pytest.mark.parametrize("weights", [(0, 0), (1, -1)])
def test_weights_that_say_nothing(weights: tuple[float, float]) -> None:
    with pytest.raises(ViqError, match="at least one corpus with a weight above 0"):
        mixture(Numbers("a"), Numbers("b"), weights=weights)


def test_an_epoch_shows_each_index_once_over_all_lanes() -> None:
    mixed = mixture(Numbers("a", 12), lanes=3)
    lanes = [[index for _, index in drawn(mixed, lane, 12)] for lane in range(3)]
    epochs = [[lane[4 * e : 4 * e + 4] for lane in lanes] for e in range(3)]
    for epoch in epochs:
        assert sorted(sum(epoch, [])) == list(range(12))
    assert epochs[0] != epochs[1] != epochs[2]  # shuffled anew
    assert lanes == [[i for _, i in drawn(mixed, lane, 12)] for lane in range(3)]
    assert lanes[0] != [i for _, i in drawn(mixture(Numbers("a", 12), lanes=3, seed=1), 0, 12)]


def test_lanes_never_share_a_drawing_and_do_not_hear_of_each_other() -> None:
    both = mixture(Numbers("a"), Numbers("b"), lanes=2)
    first, second = drawn(both, 0, 40), drawn(both, 1, 40)
    assert not set(first) & set(second)
    assert drawn(mixture(Numbers("a"), Numbers("b"), lanes=2), 1, 40) == second


def test_an_example_depends_on_seed_lane_and_draw() -> None:
    mixed = mixture(Numbers("a"), lanes=2)

    def made(lane: int) -> list[Any]:
        return [mixed.example(lane, draw, 0, 7) for draw in range(20)]

    assert made(0) == made(0) != made(1)
    assert len(set(made(0))) > 3


def test_budgets_are_kept_and_filled() -> None:
    packing = Packing(mixture(Numbers("a"), Numbers("b", 30)), budgets=(20, 24))
    batches = [batch for batch, _ in packing(40)]
    totals = [tuple(map(sum, zip(*map(packing.cost, batch), strict=True))) for batch in batches]
    assert all(first <= 20 and second <= 24 for first, second in totals)
    for total, after in zip(totals, batches[1:], strict=False):
        # The next example would not have fitted.
        more = packing.cost(after[0])
        assert total[0] + more[0] > 20 or total[1] + more[1] > 24
    assert any(len(batch) > 2 for batch in batches)
    order = [name for batch in batches for name, _ in batch]
    assert order == [f"{'ab'[part]}{index}" for part, index in drawn(packing.mixed, 0, len(order))]


def test_an_example_above_the_budget_comes_alone() -> None:
    batches = [batch for batch, _ in Packing(mixture(Numbers("a")), budgets=(4,))(20)]
    assert [name for batch in batches for name, _ in batch][:9] == [f"a{i}" for i in range(9)]
    large = [batch for batch in batches if any(cost > 4 for _, cost in batch)]
    assert len(large) > 5 and all(len(batch) == 1 for batch in large)


def test_it_goes_on_from_any_position() -> None:
    corpora = (Numbers("a", 17, bad=(3, 4)), Numbers("b"), Numbers("c", 5, bad=(1,)))
    packing = Packing(mixture(*corpora, lanes=2), lane=1)
    whole = packing(12)
    for number, (_, position) in enumerate(whole[:-1]):
        stored = Position.from_json(position.as_json())
        assert packing(12 - number - 1, stored) == whole[number + 1 :]
    assert whole == packing(12)


def test_other_data_than_before_are_refused() -> None:
    position = Packing(mixture(Numbers("a"), Numbers("b", 9)))(1)[0][1]
    for other, message in (
        (mixture(Numbers("a")), "cannot resume: number of corpora was 2, is 1; go on with the"),
        (mixture(Numbers("a"), Numbers("b", 8)), "cannot resume: order of the data was"),
        (mixture(Numbers("a"), Numbers("b", 9), seed=1), "order of the data was"),
        (mixture(Numbers("a"), Numbers("b", 9), lanes=2), "order of the data was"),
    ):
        with pytest.raises(ViqError, match=message):
            Packing(other)(1, position)


def test_positions_of_release_0_1_go_on() -> None:
    """They count what was taken, but not in which order; those of text-to-image count nothing."""
    mixed = mixture(Numbers("a", 7), Numbers("b"))
    now = Packing(mixed)(3)[1][1]
    values = {name: value for name, value in now.as_json().items() if name != "orders"}
    old = Position.from_json(values)
    assert Packing(mixed)(1, old) == Packing(mixed)(1, now)
    assert mixed.reorders([now, old]) and not mixed.reorders([now])
    assert not mixture(Numbers("a")).reorders([old])  # an endless corpus has no order
    assert mixed.resumed(Position()) == mixed.start()
    with pytest.raises(ViqError, match="number of corpora was 2, is 1"):
        mixture(Numbers("a")).resumed(old)


def test_examples_come_shard_by_shard_where_blocks_are_small() -> None:
    corpus = Numbers("a", 60)
    corpus.samples = [10] * 6
    mixed = Mixture([Part(corpus=corpus, weight=1)], seed=0, lanes=1, block=20)
    indices = [index for _, index in drawn(mixed, 0, 120)]
    for epoch in (indices[:60], indices[60:]):
        assert sorted(epoch) == list(range(60))
        assert [len({i // 10 for i in epoch[at : at + 20]}) for at in (0, 20, 40)] == [2, 2, 2]
    assert indices[:60] != indices[60:]


def test_bad_samples_are_passed_over_and_listed_once() -> None:
    packing = Packing(mixture(Numbers("a", 6, bad=(2, 5))))
    names = [name for batch, _ in packing(12) for name, _ in batch]
    assert set(names) == {"a0", "a1", "a3", "a4"}
    assert len(names) > 24  # several epochs, in each of which they are met
    assert packing.skipped.reasons == {"a:2": "a:2: broken", "a:5": "a:5: broken"}


def test_a_thousand_bad_samples_in_a_row_are_an_error() -> None:
    almost = Numbers("a", bad=range(999))
    assert Packing(mixture(almost))(1)[0][0][0][0] == "a999"
    hopeless = Packing(mixture(Numbers("a", bad=range(1000))))
    with pytest.raises(ViqError, match="1000 samples in a row cannot be used, the last: a:999: br"):
        hopeless(1)


def test_other_errors_are_not_hidden() -> None:
    class Buggy(Numbers):
        def example(self, index: int, rng: random.Random) -> Iterator[Any]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Packing(mixture(Buggy("a")))(1)
