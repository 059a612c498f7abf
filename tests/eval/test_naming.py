"""The naming probe: its split, and that features that know names score above those that guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

from viq.cli.main import app
from viq.core.types import ViqError
from viq.data.sources.open import open_source
from viq.eval.probes import naming
from viq.models.tokenizer.tokenizer import VisualTokenizer


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.labelled_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    torch.manual_seed(0)
    return VisualTokenizer(tiny.config(name="tiny", tile=0)).requires_grad_(False).eval()


def test_colours_are_named_from_codes_and_pixels(photos: Path, tokenizer: VisualTokenizer) -> None:
    seen: list[int] = []
    result = naming.evaluate(
        tokenizer, open_source(photos), baselines=True, progress=lambda: seen.append(1)
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    # About a quarter of 40 photos, by their keys; the broken one is skipped.
    assert (result["names"], result["skipped"], len(seen)) == (3, 1, 41)
    assert result["train"] + result["held_out"] == 40 and 5 <= result["held_out"] <= 15
    assert result["probes"]["thumbnail"]["percent"] == 100
    assert result["probes"]["codes"]["percent"] > result["chance"] + 30
    assert {"codes, whitened", "pooled token"} <= result["probes"].keys()
    again = naming.evaluate(tokenizer, open_source(photos), baselines=True)
    assert again == result


def test_features_that_know_nothing_guess(
    photos: Path, tokenizer: VisualTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        naming, "_features", lambda *of: [("codes", torch.randn(5, generator=noise))]
    )
    result = naming.evaluate(tokenizer, open_source(photos), baselines=False)
    assert result["probes"]["codes"]["percent"] < 80


def test_only_rows_that_pass_and_labels_that_are_frequent(
    photos: Path, tokenizer: VisualTokenizer
) -> None:
    with pytest.raises(ViqError, match="0 values of the column 'label' have 8 photos"):
        naming.evaluate(tokenizer, open_source(photos), where={"side": "odd"})
    with pytest.raises(ViqError, match="0 values of the column 'nothing'"):
        naming.evaluate(tokenizer, open_source(photos), label="nothing")


def test_the_command(photos: Path, tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    run = CliRunner().invoke(app, ["eval", "naming", str(photos), "--model", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert "held_out" in run.stdout and "codes, whitened" in run.stdout
    run = CliRunner().invoke(
        app, ["eval", "naming", str(photos), "--model", str(tmp_path), "--where", "side=odd"]
    )
    assert run.exit_code == 2
