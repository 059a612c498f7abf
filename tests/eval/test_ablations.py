"""Ablations: a debug study, one that is stopped and goes on, the rule of verdicts, the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tiny
import torch
from typer.testing import CliRunner

from viq.cli.main import app
from viq.core.types import ViqError
from viq.eval.ablations import run
from viq.eval.ablations.arms import (
    ABLATIONS,
    ARMS,
    CLAIMS,
    FEATURE_CLAIM,
    AblationConfig,
    Claim,
    arms_of,
    debug,
)  # fmt: skip
from viq.eval.ablations.model import make
from viq.eval.ablations.training import _digest, stages_of
from viq.eval.ablations.verdict import CONFIRMED, CONTRADICTED, OPEN, judge, judge_features, verdict
from viq.models.tokenizer.simvq import SimVQBottleneck, rotated
from viq.report.ablation_page import chart_svg, page


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.labelled_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def study(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> run.Study:
    out = tmp_path_factory.mktemp("study") / "out"
    return run.Study(
        config=debug(), out=out, photos=(str(photos),), crops=(str(_picture(out.parent)),),
        ablations=("rope", "simvq", "limit", "continuous"), seeds=1,
    )  # fmt: skip


def _picture(folder: Path) -> Path:
    tiny.picture(0, 40, 56).save(folder / "crop.png")
    return folder / "crop.png"


@pytest.fixture(scope="module")
def result(study: run.Study) -> dict[str, Any]:
    return run.ablate(study)


def test_arms_are_measured_and_paired(study: run.Study, result: dict[str, Any]) -> None:
    assert list(result["arms"]) == ["base", "no-position", "simvq", "l2", "batch-norm"]
    base = {name: found["mean"] for name, found in result["arms"]["base"].items()}
    kinds = ("name", "colour", "shape", "place", "background", "count", "chart")
    assert base["reader"] == pytest.approx(sum(base[k] for k in kinds) / 7, abs=0.02)
    both = (base["reader"] + base["probe_names"]) / 2
    assert base["understanding"] == pytest.approx(both, abs=0.02)
    assert 5 < base["kodak_db"] < 40 and 1 <= base["used"] <= 16
    assert list(result["features"]) == ["codes", "continuous", "teacher", "blind"]
    assert [claim["claim"] for claim in result["claims"]] == [
        c.says for c in CLAIMS if c.ablation in study.ablations
    ] + ["codes within 2 points of their own continuous features"]
    assert {claim["verdict"] for claim in result["claims"]} == {OPEN}  # of one seed
    assert set(result["not_run"]) == {"proximal", "distill", "reconstruction"}
    looked = [base[f"{kind}, fresh reader"] for kind in ("place", "count")]
    assert base["looked"] == pytest.approx(sum(looked) / 2, abs=0.02)
    assert "looked" in result["arms"]["no-position"] and "looked" not in result["arms"]["simvq"]
    stages = {path.name for path in (study.out / "seed-0").glob("*.safetensors")}
    # Alignment once, the three limits, and codes after each of them, by SimVQ, without positions.
    assert [sum(name.startswith(p) for name in stages) for p in ("1-", "2-1-", "2-2-")] == [1, 3, 5]


def test_a_stopped_study_goes_on_to_the_same_figures(
    study: run.Study, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    again = run.Study(**{**vars(study), "out": tmp_path / "out"})
    measured: list[int] = []
    measure = run.measure

    def stopped(*args: Any) -> dict[str, float]:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(1)
        return measure(*args)

    monkeypatch.setattr(run, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.ablate(again)
    base = (again.out / "seed-0/base.json").read_bytes()
    assert not (again.out / "seed-0/simvq.json").exists()
    monkeypatch.setattr(run, "measure", measure)
    assert run.ablate(again)["arms"] == result["arms"]
    assert (again.out / "seed-0/base.json").read_bytes() == base


def test_a_finished_study_trains_nothing(
    study: run.Study, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "train_arm", never)
    assert run.ablate(study) == result


def test_other_settings_and_foreign_folders_are_refused(study: run.Study, tmp_path: Path) -> None:
    run.ablate(study)
    other = run.Study(**{**vars(study), "config": AblationConfig()})
    with pytest.raises(ViqError, match=r"other settings \(config\)"):
        run.ablate(other)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ViqError, match="holds other things"):
        run.ablate(run.Study(**{**vars(study), "out": tmp_path}))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command(photos: Path, tmp_path: Path) -> None:
    words = ["ablate", "--data", str(photos), "--kodak", str(_picture(tmp_path)), "--recipe",
             "debug", "--only", "reconstruction", "--seeds", "2", "--jobs", "2",
             "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "no loss of understanding" in done.stdout
    made = json.loads((tmp_path / "out/ablations.json").read_text())
    assert [len(claim["seeds"]) for claim in made["claims"]] == [2, 2]
    assert "| + reconstruction: more of the pixels |" in (tmp_path / "out/ablations.md").read_text()
    ElementTree.fromstring((tmp_path / "out/ablations.svg").read_text())
    for wrong, told in ((["--only", "colour"], "choose from"), (["--seeds", "0"], "at least 1"),
                        (["--recipe", "huge"], "short, debug")):  # fmt: skip
        failed = CliRunner().invoke(app, [*words, *wrong])
        assert failed.exit_code == 2 and told in failed.stderr and "\n" not in failed.stderr.strip()


@pytest.mark.parametrize(
    ("mean", "half", "margin", "says"),
    [
        (1.0, 0.9, None, CONFIRMED),
        (1.0, 1.1, None, OPEN),
        (-1.0, 0.9, None, CONTRADICTED),
        (-0.5, 0.4, 1.0, CONFIRMED),  # worse for sure, but by less than the margin
        (-0.5, 0.6, 1.0, OPEN),
        (-2.0, 1.5, 1.0, CONTRADICTED),
        (0.0, 0.0, None, OPEN),
    ],
)
def test_the_rule(mean: float, half: float, margin: float | None, says: str) -> None:
    assert verdict(mean, half, margin) == says


def test_pairs_are_of_the_same_seed() -> None:
    claim = Claim(ablation="a", says="a > b", better="a", worse="b", outcome="x")
    runs = {"a": {0: {"x": 5.0}, 1: {"x": 9.0}, 2: {"x": 1.0}}, "b": {1: {"x": 7.0}, 0: {"x": 4.0}}}
    found = judge(claim, runs)
    assert found is not None
    assert found["seeds"] == [1.0, 2.0] and found["mean"] == 1.5
    assert found["half_width"] == pytest.approx(12.71 * 0.5**0.5 / 2**0.5, abs=0.01)
    assert found["verdict"] == OPEN
    assert judge(claim, {"a": runs["a"]}) is None


def test_readers_that_see_nothing_confirm_nothing() -> None:
    seeds = range(3)
    levels = {"codes": 50.0, "continuous": 50.5, "blind": 20.0}
    runs = {name: {s: {"reader": level + s} for s in seeds} for name, level in levels.items()}
    assert (judge_features(FEATURE_CLAIM, runs) or {})["verdict"] == CONFIRMED
    runs["blind"] = {s: {"reader": 50.0 - s} for s in seeds}
    assert (judge_features(FEATURE_CLAIM, runs) or {})["verdict"] == OPEN
    assert judge_features(FEATURE_CLAIM, {"codes": runs["codes"]}) is None


def test_every_arm_is_one_choice_away_from_base_and_has_as_many_steps() -> None:
    config = AblationConfig()
    total = sum(stage.steps for stage in stages_of(ARMS["base"], config))
    for arm in arms_of(ABLATIONS):
        stages = stages_of(arm, config)
        assert sum(stage.steps for stage in stages) == total
        shared = _digest(stages[0]) == _digest(stages_of(ARMS["base"], config)[0])
        assert shared == (arm.name != "text")
    with pytest.raises(ViqError, match="choose from"):
        arms_of(("colour",))


def test_an_arm_has_the_parts_that_it_says() -> None:
    def limited(name: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = make(ARMS[name], debug().model(ARMS[name], "proximal"), 8)
        return model.quantizer.bottleneck.bound(torch.randn(50, 4, 32)).flatten(0, 1)

    assert torch.allclose(limited("base").abs().amax(-1), torch.ones(200))
    assert torch.allclose(limited("l2").norm(dim=-1), torch.ones(200))
    normed = limited("batch-norm")
    assert torch.allclose(normed.mean(0), torch.zeros(32), atol=1e-5)
    assert torch.allclose(normed.std(0, correction=0), torch.ones(32), atol=1e-3)

    def angles(name: str) -> str:
        blocks = make(ARMS[name], debug().model(ARMS[name], "fsq"), 8).quantizer.bottleneck.blocks
        return blocks[0].attn.angle_dtype

    assert (angles("base"), angles("no-position")) == ("float32", "none")


def test_a_rotated_vector_is_the_target_and_its_gradient_is_turned() -> None:
    torch.manual_seed(0)
    z, target = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    found = rotated(z, target)
    torch.testing.assert_close(found, target)
    (along,) = torch.autograd.grad((found * target).sum(), z)
    # What pulls along the target pulls along the vector, by the ratio of their lengths.
    wanted = z / z.norm(dim=1, keepdim=True).square() * target.square().sum(1, keepdim=True)
    torch.testing.assert_close(along, wanted.detach())


def test_simvq_takes_the_nearest_row_and_only_its_map_learns_from_the_commitment() -> None:
    torch.manual_seed(0)
    bottleneck = make(ARMS["simvq"], debug().model(ARMS["simvq"], "fsq"), 8).quantizer.bottleneck
    assert isinstance(bottleneck, SimVQBottleneck)
    z = torch.randn(6, 4, 32, requires_grad=True)
    table = bottleneck.map(bottleneck.rows_ed)
    ids = bottleneck.indices(z)
    assert torch.equal(ids, torch.cdist(z.detach(), table.detach()).argmin(-1))
    torch.testing.assert_close(bottleneck.bound(z), table[ids])
    bottleneck.commitment_T.sum().backward()
    assert bottleneck.map.weight.grad is not None and bottleneck.map.weight.grad.abs().sum() > 0
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z - table[ids]).detach() / 128)


def test_page_and_plot_say_the_verdicts() -> None:
    claim = {"claim": "a <b> c", "mean": 1.5, "half_width": 0.5, "seeds": [1.0, 2.0], "margin": 1.0,
             "outcome": "kodak_db", "verdict": CONFIRMED}  # fmt: skip
    arms = {"base": {"kodak_db": {"mean": 20.5, "half_width": 0.25, "seeds": [20.0, 21.0]}}}
    result = {"seeds": 2, "torch": "x", "settings": {"name": "short"}, "claims": [claim],
              "not_run": ["rope"], "arms": arms, "features": {}}  # fmt: skip
    text = page(result, "plot.svg")
    assert "| +1.50 (+1.00 to +2.00) | 2 | confirmed |" in text and "Not run: rope." in text
    assert "| Kodak crops, dB, linear map | 20.5 ± 0.2 |" in text
    root = ElementTree.fromstring(chart_svg([claim]))
    words = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <b> c (dB)" in words
    ElementTree.fromstring(chart_svg([]))
