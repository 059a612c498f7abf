"""The last stages of a transform recipe: refinement, and the tables that compress."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refined import pictures, plain_tokenizer

from viq.codec import CountedTables
from viq.core.types import ViqError
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes.tokenizer import train_transform
from viq.train.entropy import TablesFitConfig
from viq.train.tokenizer.fitted_stages import fit_stage
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.train.tokenizer.refinement_fit import RefinementFitConfig
from viq.train.tokenizer.run import TokenizerRun, TrainingData


def recipe() -> TokenizerRecipe:
    """The bundled recipe, of a small model, from the decoder on."""
    whole = train_transform()
    _, decoder, refinement, entropy = whole.stages
    fit = RefinementFitConfig(crops=8, crop=96, page_ratio=0.0, patches=150)
    return replace(
        whole,
        model=plain_tokenizer().config,
        stages=(
            decoder,
            replace(refinement, refinement=fit),
            replace(entropy, entropy=TablesFitConfig(pictures=9, counted=2, rates=(0.6, 1.2))),
        ),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TokenizerRun:
    """A run whose decoder is trained, and that goes on from there."""
    out = tmp_path_factory.mktemp("run")
    plain_tokenizer().save_pretrained(out / "2-decoder" / "model")
    made = TokenizerRun(recipe(), TrainingData(photos=pictures(6, 20)), out, hidden=True)
    made.train()
    return made


def test_a_run_ends_with_all_that_rates_and_compression_need(
    run: TokenizerRun, tmp_path: Path
) -> None:
    model = VisualTokenizer.from_pretrained(run.out / "4-entropy" / "model")
    model.save_pretrained(tmp_path, dtype=torch.float16)  # as the command ends
    model = VisualTokenizer.from_pretrained(tmp_path)
    assert isinstance(model.entropy, CountedTables)
    (codes,) = model.encode(pictures(1, 90)[0], bpp=0.6, compress=True)
    assert model.entropy.stored_bytes(codes) <= 0.6 * 96 * 128 / 8
    before = VisualTokenizer.from_pretrained(run.out / "3-refinement" / "model")
    assert before.fingerprint == model.fingerprint and before.refinement is not None
    with pytest.raises(ViqError, match="missing"):
        _ = before.entropy


def test_what_has_ended_is_not_fitted_again(
    run: TokenizerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was cut off in its last stage, that stage alone."""
    fitted = list[str]()

    def fit(recipe: TokenizerRecipe, stage: StageConfig, *rest: object) -> None:
        fitted.append(stage.name)

    monkeypatch.setattr("viq.train.tokenizer.run.fit_stage", fit)
    config = run.out / "4-entropy" / "model" / "config.json"
    kept = config.read_bytes()
    config.unlink()
    with pytest.raises(ViqError):  # as nothing was fitted
        run.train()
    assert fitted == ["4-entropy"]
    config.write_bytes(kept)
    run.train()
    assert fitted == ["4-entropy"]


def test_what_a_stage_says_of_itself(tmp_path: Path) -> None:
    chosen = recipe()
    with pytest.raises(ViqError, match="a stage refinement, and no other"):
        replace(chosen.stages[1], refinement=None)
    with pytest.raises(ViqError, match="3-refinement: needs a stage"):
        fit_stage(chosen, chosen.stages[1], (), (), None, tmp_path, print)
    with pytest.raises(ViqError, match="at least one picture"):
        TablesFitConfig(rates=())
