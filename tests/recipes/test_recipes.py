"""Every recipe builds, survives JSON, and has the size it claims; the largest takes a real step."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from viq.core.types import ViqError
from viq.models.tokenizer import presets
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes.registry import RECIPES, find_recipe, scaled, with_places
from viq.train.optim import make_optimizer
from viq.train.tokenizer.objectives import PIXELS
from viq.train.tokenizer.recipe import TokenizerRecipe
from viq.train.tokenizer.run import TokenizerRun, TrainingData
from viq.weights.checkpoint import CheckpointError, WithoutInit, to_dict


def built(recipe: TokenizerRecipe) -> VisualTokenizer:
    with torch.device("meta"), WithoutInit():
        return VisualTokenizer(recipe.model)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_survives_json(name: str, tmp_path: Path) -> None:
    recipe = find_recipe(name)
    assert count(built(recipe)) > 10_000
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_dict(recipe)))
    assert find_recipe(str(path)) == recipe
    for stage in recipe.stages:
        if stage.loop.losses.get("text"):
            assert recipe.language is not None and "reader" in stage.parts
        if stage.loop.losses.keys() & {"rmse", "mse"}:
            assert stage.data.crops is not None and "decoder" in stage.parts


def test_sizes_of_the_papers_models() -> None:
    large = built(find_recipe("g"))
    assert count(large.encoder) == pytest.approx(1.16e9, rel=0.005)
    assert count(large.quantizer) == pytest.approx(277e6, rel=0.005)
    small = built(find_recipe("so400m"))
    width, mlp = 1152, 4304
    block = 4 * width**2 + 4 * width + 2 * width * mlp + width + mlp + 4 * width
    embedding = 3 * 16**2 * width + width + 128**2 * width
    assert count(small.encoder) == 27 * block + embedding
    assert large.latent_head is not None and small.decoder is not None
    assert count(built(find_recipe("tiny"))) == pytest.approx(6.45e6, rel=0.005)


def test_debug_has_the_stages_of_tiny() -> None:
    small, full = find_recipe("debug"), find_recipe("tiny")
    assert [s.name for s in small.stages] == [s.name for s in full.stages]
    for a, b in zip(small.stages, full.stages, strict=True):
        assert (a.kind, a.bottleneck, a.parts, a.new) == (b.kind, b.bottleneck, b.parts, b.new)
        assert a.loop.losses == b.loop.losses and a.loop.optim == b.loop.optim


def test_small_recipes_train_on_roots_and_the_papers_on_squares() -> None:
    """tiny's weights belong to the root; the paper writes squares."""

    def pixels(name: str) -> dict[str, dict[str, float]]:
        losses = {stage.name: stage.loop.losses for stage in find_recipe(name).stages}
        found = {s: {k: v for k, v in t.items() if k in PIXELS} for s, t in losses.items()}
        return {name: terms for name, terms in found.items() if terms}

    roots = dict.fromkeys(("0-detail-proximal", "0-detail-fsq", "3-decoder"), {"rmse": 1.0})
    assert pixels("tiny") == roots | dict.fromkeys(("2-1-proximal", "2-2-fsq"), {"rmse": 5.0})
    assert pixels("g") == pixels("so400m") == {"3-decoder": {"mse": 1.0}}


def changed(edit: Callable[[dict[str, Any]], Any]) -> str:
    values = to_dict(find_recipe("debug"))
    return json.dumps(edit(values) or values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed(lambda v: v.update(nam="x")), r"unknown config fields \['nam'\]"),
        (changed(lambda v: v["stages"][0]["loop"].update(stepz=1)), r"unknown .*\['stepz'\]"),
        (changed(lambda v: {"name": v["name"]}), r"missing.*'model' and 'stages'"),
        (changed(lambda v: v["stages"][0].update(kind="towr")), "kind 'towr': choose from tower"),
        (changed(lambda v: v["stages"][0]["loop"]["losses"].update(x=1)), r"no losses \['x'\]"),
        (
            changed(lambda v: v["stages"][0]["loop"]["losses"].update(text=1)),
            "choose from contrast$",
        ),
        (changed(lambda v: v["stages"].clear()), "need different names"),
        ("{", "not JSON"),
    ],
)
def test_recipe_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ViqError, match=words) as error:
        find_recipe(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_recipes_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="no recipe huge: choose one of tiny, transform, small"):
        find_recipe("huge")
    with pytest.raises(ViqError, match="no such file"):
        find_recipe(str(tmp_path / "none.json"))


def test_scaled_and_placed() -> None:
    recipe = find_recipe("tiny")
    half = scaled(recipe, 0.5)
    for a, b in zip(recipe.stages, half.stages, strict=True):
        assert b.loop.steps == a.loop.steps // 2 and b.loop.losses == a.loop.losses
    assert all(stage.loop.steps == 1 for stage in scaled(recipe, 1e-9).stages)
    placed = with_places(recipe, {"teacher": "T", "start": None, "language": "L"})
    assert (placed.teacher, placed.start) == ("T", None)
    assert placed.language is not None and placed.language.name == "L"
    assert with_places(recipe, {"vae": None}) == recipe


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Folders of SigLIP2 (width of g, one layer), a Qwen2 (width of Qwen2.5-0.5B, one layer) and a
    Qwen-Image VAE (its 16 channels, narrow inside), of random weights."""
    transformers = pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vision = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=1536, intermediate_size=6144, num_hidden_layers=1,
            num_attention_heads=16, image_size=32, patch_size=16,
        )
    )  # fmt: skip
    vision.to(torch.bfloat16).save_pretrained(tmp_path / "siglip")
    language = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=len(tiny.letters()) + 1, hidden_size=896, intermediate_size=4864,
            num_hidden_layers=1, num_attention_heads=14, num_key_value_heads=2,
        )
    )  # fmt: skip
    language.save_pretrained(tmp_path / "qwen")
    tiny.letters().save_pretrained(tmp_path / "qwen")
    diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    names = {"start": "siglip", "teacher": "siglip", "language": "qwen", "vae": "vae"}
    return {place: str(tmp_path / name) for place, name in names.items()}


def test_g_takes_a_real_step_with_a_cut_depth(places: dict[str, str], tmp_path: Path) -> None:
    """At the widths of `g`, with its losses and adapters, of stage 2-2; one layer of each kind."""
    from test_objectives import micro

    from viq.train.loss_terms import weighted
    from viq.train.tokenizer.objectives import AlignObjective

    recipe = with_places(find_recipe("g"), places)
    model = recipe.model
    assert model.latents is not None
    quantizer = replace(model.quantizer, pre_depth=1, slot_depth=1, post_depth=1)
    model = replace(
        model,
        encoder=replace(model.encoder, depth=1),
        quantizer=quantizer,
        decoder=None,
        latents=replace(model.latents, depth=1),
    )
    recipe = replace(recipe, model=model)
    stage = recipe.stages[3]
    objective = (
        TokenizerRun(recipe, TrainingData(), tmp_path / "run").objective(stage, None, 0).train()
    )
    assert isinstance(objective, AlignObjective) and objective.teacher is not None
    start = objective.tokenizer.pool_head.kv.weight.detach().clone()
    assert torch.equal(start, objective.teacher.pool_head.kv.weight)
    assert objective.tokenizer.encoder.checkpointing
    optimizer = make_optimizer(objective, stage.loop.optim)
    batch = micro([(32, 48), (30, 20)], chats=2)
    sums = objective(batch)
    weighted(sums, batch.counts, stage.loop.losses, objective.counted_in).backward()
    optimizer.step()
    assert all(value.isfinite() for value in sums.values())
    without = {n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    assert not torch.equal(start, objective.tokenizer.pool_head.kv.weight)
    frozen = {n.split(".")[0] for n, p in objective.named_parameters() if not p.requires_grad}
    assert frozen == {"teacher", "reader"}


def test_a_recipe_made_for_siglip_says_so_when_it_begins_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(name: str, previous: Path | None = None) -> str:
        recipe = replace(find_recipe(name), model=tiny.config())
        data = replace(recipe.stages[-1].data, crops=None)
        losses = replace(recipe.stages[-1].loop, losses={"mse": 1.0})
        stage = replace(recipe.stages[-1], name="middle", kind="align", data=data, loop=losses)
        TokenizerRun(recipe, TrainingData(), tmp_path / "run").objective(stage, previous, 0)
        return capsys.readouterr().err

    for name in ("g", "so400m"):
        assert begun(name) == (
            f"middle: the encoder begins from random weights, but recipe {name} is made for "
            "SigLIP2's: name its folder with --start\n"
        )
    tiny.tokenizer().save_pretrained(tmp_path / "before" / "model")
    assert begun("g", tmp_path / "before") == ""  # from the stage before
    for name in ("tiny", "debug", "ablation-full"):
        assert begun(name) == ""


def test_damaged_places_are_one_line(tmp_path: Path) -> None:
    stage = replace(find_recipe("g").stages[0], gradient_checkpointing=False)
    recipe = replace(
        find_recipe("g"), model=tiny.config(), stages=(stage,), start=str(tmp_path / "none")
    )
    with pytest.raises(CheckpointError, match="none: no such file or folder"):
        TokenizerRun(recipe, TrainingData(), tmp_path / "run").objective(stage, None, 0)


def test_models_are_named_as_recipes() -> None:
    for name, make in presets.MODELS.items():
        assert replace(make(), latents=None) == replace(find_recipe(name).model, latents=None)
