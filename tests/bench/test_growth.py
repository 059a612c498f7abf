"""How costs grow: the shape of what is measured, and the powers by hand; no time is asserted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

from viq.bench import growth
from viq.bench.growth_tables import as_text, chart, power
from viq.cli import app
from viq.core.types import ViqError
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.charts import to_svg
from viq.store.folder import Store

WORK = growth.GrowthWorkload(megapixels=(0.01, 0.02), samples=(30, 60), tokens=(128, 256))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    VisualTokenizer(tiny.config(name="viq", tile=48)).eval().save_pretrained(folder)
    return folder


def rows(*costs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"size": size, "median_s": seconds} for size, seconds in costs]


def test_power() -> None:
    assert power(rows((1, 1), (10, 9), (100, 90))) == pytest.approx(1)
    assert power(rows((1, 1), (10, 2), (100, 200))) == pytest.approx(2)
    assert power(rows((1, 1))) != power(rows((1, 1)))  # of one size there is none


def test_samples_are_those_of_a_store(tmp_path: Path) -> None:
    growth.write_drawn(str(tmp_path / "seconds"), 250, str(tmp_path / "store"))
    assert float((tmp_path / "seconds").read_text()) > 0
    store = Store(tmp_path / "store")
    assert len(list(store)) == 250
    assert growth.STORE_JOBS["lint"](tmp_path / "store", tmp_path)["problems"] == 0
    found = growth.STORE_JOBS["near-duplicates"](tmp_path / "store", tmp_path)["pairs"]
    assert [(p["a"][-6:], p["b"][-6:]) for p in found] == [
        ("00.jpg", "01.jpg"), ("00.jpg", "01.jpg"), ("00.jpg", "01.jpg")
    ]  # fmt: skip


def test_what_takes_long_runs_once() -> None:
    ran: list[int] = []

    def job(size: int, seconds: float) -> dict[str, float | None]:
        ran.append(size)
        return {"seconds": seconds, "peak_mib": None if size == 1 else 100.0 + len(ran)}

    found = growth._grown({1: lambda: job(1, 2.0), 2: lambda: job(2, 61.0)}, 3)
    assert ran == [1, 2, 1, 1]
    assert [(row["runs"], row["median_s"], row["peak_mib"]) for row in found] == [
        (3, 2.0, None), (1, 61.0, 102.0)
    ]  # fmt: skip


def test_all_sections(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(work: Callable[..., None], *arguments: Any) -> float:
        work(*json.loads(json.dumps(arguments)))  # as a fresh process is given them
        return 1.0

    monkeypatch.setattr(growth, "peak_memory", here)
    result = growth.run(str(model), repeats=1, work=WORK)
    assert json.loads(json.dumps(result)) == result
    for name in growth.SECTIONS:
        for found in result[name].values():
            assert len(found) == 2 and all(row["median_s"] > 0 for row in found)
        svg = to_svg(chart(name, result[name]))
        assert all(job in svg for job in result[name])
    text = as_text(result)
    assert "near-duplicates" in text and "seconds a megapixel" in text


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"benchmark": "growth", "pixels": {"encode": rows((1, 1), (2, 3))}}
    measured["pixels"]["encode"][0]["peak_mib"] = measured["pixels"]["encode"][1]["peak_mib"] = 9
    monkeypatch.setattr(growth, "machine", dict)
    whole = growth.run("viq-tiny", sections=())
    monkeypatch.setattr(growth, "run", lambda *_, **__: {**whole, **measured})
    out = tmp_path / "growth.json"
    out.write_text(json.dumps({"benchmark": "growth", "schema_version": 1, "tokens": {"a": []}}))
    done = CliRunner().invoke(app, ["bench", "growth", "--json", "-o", str(out)])
    assert done.exit_code == 0, done.output
    kept = json.loads(out.read_text())
    assert kept["tokens"] == {"a": []} and kept["pixels"] == measured["pixels"]
    out.write_text("{}")
    done = CliRunner().invoke(app, ["bench", "growth", "-o", str(out)])
    assert done.exit_code == 2 and "not a result of viq bench growth" in done.output


def test_unknown_sections_are_refused() -> None:
    with pytest.raises(ViqError, match="choose from pixels, samples, tokens"):
        growth.run("viq-tiny", sections=["time"])
