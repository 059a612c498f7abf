"""The speed table: shapes as published, packs exactly full, one sequence for all ways to see."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from viq.bench import mllm, mllm_work
from viq.bench.mllm_tables import PAPER, break_even, chart, merged, over_limit, saving
from viq.cli import app
from viq.core.types import ViqError, language_tokens
from viq.image.patches import lengths_of

pytest.importorskip("transformers")
TINY = mllm_work.MllmWorkload(
    text=64, answer=32, scale=mllm_work.Scale(width=8, depth=24, length=32, side=8)
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result() -> dict:
    return mllm.run(["0.5b"], ["4k"], repeats=1, work=TINY, device=CPU)


PUBLISHED = {
    "0.5b": 494_032_768,
    "1.5b": 1_543_714_304,
    "3b": 3_085_938_688,
    "7b": 7_615_616_512,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    model = mllm_work.make_language(mllm_work.LANGUAGES[name], torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("length", ["4k", "16k"])
def test_packs_are_exactly_full(length: str) -> None:
    work = mllm_work.MllmWorkload()
    pack = mllm_work.pack_samples(mllm_work.LENGTHS[length], work, CPU, torch.float32)
    assert sum(pack.lengths) == len(pack.ids_L) == mllm_work.LENGTHS[length]
    grids = pack.batch.grids_hw
    assert all(rows * cols * 256 <= 768**2 for rows, cols in grids)
    assert int(pack.places_L.sum()) == sum(map(language_tokens, grids))
    assert len(pack.codes_TS) == sum(lengths_of(grids))
    assert len(pack.scored_A) == len(grids) * work.answer
    assert torch.equal(pack.targets_A, pack.ids_L[pack.scored_A + 1])
    assert not pack.places_L[pack.scored_A + 1].any()
    # The last word of each sample is scored, none across two samples.
    ends = torch.tensor(pack.lengths).cumsum(0)
    assert set((ends - 2).tolist()) <= set(pack.scored_A.tolist())
    assert not set((ends - 1).tolist()) & set(pack.scored_A.tolist())


def test_a_run_is_plain_data_with_all_ways(result: dict) -> None:
    assert json.loads(json.dumps(result)) == result
    (cell,) = result["cells"]
    assert list(cell["step"]) == list(cell["forward"]) == list(mllm.WAYS)
    assert cell["tokens"] == 128 and cell["scored_tokens"] == cell["images"]
    assert list(cell["extraction"]) == ["float32"] and result["scaled"]
    text = mllm.as_text(result)
    assert "SCALED DOWN" in text and "0.61/2.08" in text and "71%" in text
    assert chart(result).items


def test_only_text_is_blind_and_towers_stay_frozen() -> None:
    eyes = mllm.Eyes(TINY.scale, CPU, torch.float32)
    pack = mllm_work.pack_samples(4096, TINY, CPU, torch.float32)
    shape = mllm_work.scaled(mllm_work.LANGUAGES["0.5b"], TINY.scale)
    subject = mllm.Subject(shape, eyes, TINY, CPU, torch.float32)
    losses = {way: subject.loss(way, pack) for way in mllm.WAYS}
    assert len({round(loss.item(), 6) for loss in losses.values()}) == len(mllm.WAYS)
    for way, loss in losses.items():
        subject.optimizer.zero_grad()
        loss.backward()
        trained = {name for name, p in subject.projectors.named_parameters() if p.grad is not None}
        assert {name.split(".")[0] for name in trained} == ({way} - {"text"})
        assert all(p.grad is None for p in eyes.tokenizer.parameters())


def test_figures_by_hand() -> None:
    step = {way: {"median_s": s} for way, s in zip(mllm.WAYS, (1.0, 1.1, 1.5, 2.2), strict=True)}
    cell = {"step": step, "extraction": {"bfloat16": 1.1, "float32": 4.4}}
    assert saving(cell, "step") == pytest.approx(0.5)
    assert over_limit(cell, "step") == pytest.approx(0.1)
    assert break_even(cell) == pytest.approx({"bfloat16": 1.0, "float32": 4.0})
    step["g"]["median_s"] = 1.0
    assert break_even(cell)["bfloat16"] is None
    # As printed in the paper.
    printed = {"forward": "71 79 69 77 62 73 47 65", "step": "50 70 46 63 36 54 23 42"}
    for kind, shares in printed.items():
        ours = [100 * (1 - a / b) for a, b in (cells[kind] for cells in PAPER.values())]
        assert ours == pytest.approx([float(s) for s in shares.split()], abs=0.8)


def test_pieces_make_one_table(result: dict) -> None:
    other = {**result, "cells": [{**result["cells"][0], "length": "16k"}]}
    both = merged(other, result, "speed.json")
    assert [cell["length"] for cell in both["cells"]] == ["4k", "16k"]
    with pytest.raises(ViqError, match=r"speed.json: .*\(repeats differ\)"):
        merged({**result, "repeats": 9}, result, "speed.json")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllm, "SCALED", TINY.scale)
    monkeypatch.setattr(mllm, "default_device", lambda: CPU)
    out, picture = tmp_path / "speed.json", tmp_path / "speed.png"

    def call(*options: str):
        arguments = ["bench", "mllm", "--repeats", "1", "--scaled", "--text", "64"]
        return CliRunner().invoke(app, [*arguments, "-o", str(out), *options])

    assert call("--llm", "0.5b", "--length", "4k", "--chart", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert call("--llm", "1.5b", "--length", "4k").exit_code == 0
    assert [cell["llm"] for cell in json.loads(out.read_text())["cells"]] == ["0.5b", "1.5b"]
    for options, message in (
        (("--llm", "9b"), "--llm 9b: choose from 0.5b"),
        (("--length", "3"), "--length 3: choose from 1k"),
        (("--side", "512"), "was measured otherwise (work differ)"),
        (("--chart", "a.svg"), "give NAME.png"),
    ):
        done = call(*options)
        assert done.exit_code == 2 and message in done.output
