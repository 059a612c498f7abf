"""Benchmarks of packed batches, and the guard of speeds: that all ways do the same work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viq.bench import peer, remote
from viq.bench.batches import batches, drawn, write
from viq.bench.quick import FALL, QuickWorkload, as_text, compared, quick
from viq.bench.store_tables import as_text as store_text
from viq.store.dataset import CodeDataset
from viq.store.rows import StoreInfo

INFO = StoreInfo(model="viq-test", fingerprint="00000000000000ab", levels=(8, 8, 8, 5, 5, 5))


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["datasets", "webdataset"])
def test_other_libraries_give_the_same_samples(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason="one of the libraries that are compared")
    codes, texts = drawn(INFO, 30)
    samples = [
        {
            "key": f"{i}",
            "height": item.size[0],
            "width": item.size[1],
            "ids": item.ids,
            "text_ids": text,
        }
        for i, (item, text) in enumerate(zip(codes, texts, strict=True))
    ]
    (tmp_path / "other").mkdir()
    loader = peer.BATCHED[name](samples, tmp_path / "other")["batches"](7, 0)
    data = CodeDataset(write(INFO, codes, texts, tmp_path / "codes"), cache=tmp_path / "cache")
    ours = list(data.batches(samples=7, packed=True))

    def parts(values: Any, offsets: Any) -> list[bytes]:
        values = np.asarray(values)
        return [values[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False)]

    theirs = list(loader)
    for wanted, found in (
        (
            [part for batch in ours for part in parts(batch.ids, batch.offsets)],
            [part for batch in theirs for part in parts(batch["ids"], batch["offsets"])],
        ),
        (
            [
                part.tobytes()
                for batch in ours
                for part in map(batch.columns["text_ids"].__getitem__, range(len(batch)))
            ],
            [
                part
                for batch in theirs
                for part in parts(
                    np.asarray(batch["text_ids"], np.int64), np.asarray(batch["text_offsets"])
                )
            ],
        ),
        (
            sorted(tuple(grid) for batch in ours for grid in batch.grids_hw.tolist()),
            sorted(tuple(grid) for batch in theirs for grid in batch["grids_hw"].tolist()),
        ),
    ):
        assert len(wanted) == 30 and sorted(wanted) == sorted(found)


def test_what_is_skipped_is_not_timed() -> None:
    ticks = iter(range(100))
    made = ({"ids": np.zeros(10)} for _ in range(5))
    # The clock is asked before the first, at the first and the last skipped, and at the end.
    assert peer.time_batches(made, 3, clock=lambda: float(next(ticks))) == (1.0, 1.0, 20)
    made = ({"ids": np.zeros(10)} for _ in range(5))
    assert peer.time_batches(made, 1, clock=lambda: float(next(ticks)))[2] == 40


def test_a_run_is_plain_data_with_all_ways(tmp_path: Path) -> None:
    result = batches(INFO, 300, tmp_path, None, 1)
    assert json.loads(json.dumps(result)) == result
    assert set(result["skipped"]) == set(peer.BATCHED)
    alone, one = (result["by_tokens"]["8192"][workers] for workers in ("0", "1"))
    ours = {"viq", "viq, sample by sample"}
    assert ours | {"viq, not shuffled", "memcpy", "memcpy, shuffled"} == set(alone)
    assert set(one) == {"viq", "viq, sample by sample"}
    assert alone["viq"]["viq_over"] == 1
    machine = {key: "" for key in ("cpu", "cores", "torch_threads", "os", "python", "torch")}
    about = {"model": "m", "fingerprint": "f", "repeats": 1, "machine": machine}
    assert "65,536 tokens, 2 workers" in store_text({**about, "batches": result})


def test_an_object_store_that_answers_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="reads S3: pip install 'viq[s3]'")
    monkeypatch.setattr(remote, "peak_memory", lambda work, *given: work(*given))
    monkeypatch.setattr(remote, "SPENT", 0.1)
    result = remote.remote(INFO, 1200, tmp_path, 1)
    assert json.loads(json.dumps(result)) == result
    assert (result["shards"], result["skipped"]) == (2, {})
    for steps in result["orders"].values():
        for one in steps.values():
            far, near = one["with"], one["without"]
            # To open the store it asks twice, one after the other, and at least once for a shard.
            assert far["first_s"]["median"] > 3 * result["latency_s"]
            assert far["first_requests"]["median"] >= 3 and near["batches_per_s"]["median"] > 0
            assert 0 < far["first_mib"]["median"] < 2 * result["mib"]  # parts, and whole shards
    machine = {key: "" for key in ("cpu", "cores", "torch_threads", "os", "python", "torch")}
    about = {"model": "m", "fingerprint": "f", "repeats": 1, "machine": machine}
    assert "50 ms a request" in store_text({**about, "remote": result})


def test_the_guard_measures_and_shows() -> None:
    work = QuickWorkload(images=1, samples=30, models=("viq-tiny",))
    new = quick(work, repeats=1)
    assert json.loads(json.dumps(new)) == new
    assert {"encode, viq-tiny", "pack codes, viq-tiny", "packed batches"} <= set(new["ratios"])
    for one in new["ratios"].values():
        assert 0 < one["min"] <= one["median"] <= one["max"]
    assert compared(new, {}) == {} and "new" in as_text(new, {})


def test_a_fall_is_flagged_by_hand() -> None:
    def of(**medians: float) -> dict[str, Any]:
        ratios = {
            name: {"over": "memcpy", "median": m, "min": 0.9 * m, "max": 1.1 * m}
            for name, m in medians.items()
        }
        machine = {"cpu": "a", "torch": "1", "python": "3"}
        return {"ratios": ratios, "machine": machine, "repeats": 3}

    last = of(same=1.0, less=1.0, fell=1.0, gone=1.0)
    new = of(same=1.0, less=0.86, fell=0.8, added=1.0)
    assert FALL == 0.15
    assert compared(new, last) == {"fell": pytest.approx(0.2)}
    text = as_text(new, last)
    assert text.count("FELL") == 1 and "gone was measured last" in text
    new["ratios"]["fell"]["max"] = 1.01  # one run was as fast as before
    assert compared(new, last) == {}
    assert "another machine" in as_text({**new, "machine": {**new["machine"], "cpu": "b"}}, last)
