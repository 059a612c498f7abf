"""`CodeDataset` under the loaders of others: torchdata's, which can be resumed, and samplers."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from code_stores import opened
from torch.utils.data import DataLoader, RandomSampler, Subset

from viq.core.types import ViqError

SAMPLES = 356  # of the fixture `store`


def stateful(store: Path, workers: int) -> Any:
    loader = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="loaders with a state: pip install torchdata"
    )
    data = opened(store, shuffle=3, rank=0, world=1)
    return loader.StatefulDataLoader(data, batch_size=8, num_workers=workers, collate_fn=list)


def keys(batches: Any) -> list[str]:
    return [sample.key for batch in batches for sample in batch]


@pytest.mark.filterwarnings("ignore:.set_vital:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_where_it_was(store: Path, workers: int) -> None:
    loader = stateful(store, workers)
    first = keys(loader)
    before = iter(loader)  # the second epoch
    head = keys(itertools.islice(before, 9))
    state = loader.state_dict()
    tail = keys(before)
    third = keys(loader)
    assert sorted(head + tail) == sorted(first) == sorted(third) and head + tail != first
    again = stateful(store, workers)
    again.load_state_dict(state)
    assert keys(again) == tail
    assert keys(again) == third


@pytest.mark.filterwarnings("ignore:.set_vital:UserWarning")
def test_a_state_of_other_workers_is_refused(store: Path) -> None:
    loader = stateful(store, 2)
    next(iter(loader))
    again = stateful(store, 1)
    again.load_state_dict(loader.state_dict())
    with pytest.raises((ViqError, AssertionError, RuntimeError), match="workers|resume"):
        next(iter(again))


def test_samplers_and_subsets(store: Path) -> None:
    data = opened(store).map_style()
    loader = DataLoader(data, batch_size=50, sampler=RandomSampler(data), collate_fn=list)
    assert sorted(keys(loader)) == sorted(f"key{i}" for i in range(SAMPLES))
    few = DataLoader(Subset(data, [5, 300]), collate_fn=list)
    assert keys(few) == ["key5", "key300"]
    assert data[-1].key == f"key{SAMPLES - 1}"
