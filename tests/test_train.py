"""The whole path in seconds: resume to the last bit, stages in order, the loss goes down."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from viq import recipes
from viq.checkpoint import read_weights
from viq.data.crops import CropConfig, batches, make_batch
from viq.data.photos import Photos
from viq.data.synthetic import draw
from viq.models.tokenizer import VisualTokenizer
from viq.train import losses, stages
from viq.train.loop import StageConfig, TrainingError, learning_rate, train_stage

PHOTOS = [draw("shapes", (90, 120), seed).image for seed in range(4)]


def run(out: Path, recipe: recipes.Recipe) -> VisualTokenizer:
    return stages.run(recipe.model, recipe.stages, PHOTOS, out, seed=recipe.seed)


def records(out: Path, stage: str) -> list[dict]:
    lines = (out / stage / "log.jsonl").read_text().splitlines()
    drop = {"seconds", "patches_per_second"}
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]


def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = recipes.train_debug()
    run(whole, recipe)

    class Stop(Exception):
        pass

    def stop(record: dict) -> None:
        if record["stage"] == "fsq" and record["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        stages.run(recipe.model, recipe.stages, PHOTOS, cut, report=stop)
    assert [p.name for p in (cut / "fsq").glob("step-*")] == ["step-3"]
    run(cut, recipe)
    names = ("proximal/model/model.safetensors", "fsq/model/model.safetensors")
    for name in names:
        a, b = read_weights(whole / name), read_weights(cut / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    # Each step is logged once, with the same losses; line 4 is the mean of the steps after 3.
    assert [r["step"] for r in records(cut, "fsq")] == [2, 4, 6]
    assert records(cut, "fsq")[-1] == records(whole, "fsq")[-1]


def test_training_learns_and_gives_a_usable_tokenizer(tmp_path: Path) -> None:
    recipe = recipes.train_debug()
    longer = tuple(replace(stage, steps=60, log_every=10) for stage in recipe.stages)
    model = run(tmp_path, replace(recipe, stages=longer))
    log = records(tmp_path, "proximal") + records(tmp_path, "fsq")
    assert log[-1]["psnr"] > log[0]["psnr"] + 3
    codes = model.encode(PHOTOS[0])
    assert model.decode(codes)[0].size == PHOTOS[0].size
    assert VisualTokenizer.from_pretrained(tmp_path / "fsq" / "model").encode(PHOTOS[0]) == codes
    assert len(list((tmp_path / "fsq").glob("step-*"))) <= 2


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    recipe = recipes.train_debug()
    model = stages.begin(recipe.model, "fsq", None, 0)
    assert model.decoder is not None
    model.decoder.project_out.bias.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        train_stage(model, PHOTOS, recipe.stages[1], tmp_path, seed=0)
    assert not list(tmp_path.glob("step-*"))


def test_batches_depend_on_seed_and_step_alone() -> None:
    config = CropConfig(sides={2: 1, 5: 1, 12: 0.5}, patches_per_group=16, patches_per_step=60)
    ahead = list(batches(PHOTOS, config, 7, range(3, 6)))
    for step, crop in zip(range(3, 6), ahead, strict=True):
        again = make_batch(PHOTOS, config, 7, step)
        assert torch.equal(crop.batch.patches_TD, again.batch.patches_TD)
        assert crop.batch.grids_hw == again.batch.grids_hw
        assert len(crop.mask_TD) >= 60
        assert float(crop.batch.patches_TD.abs().max()) <= 1
        assert crop.batch.patches_TD[crop.mask_TD == 0].abs().sum() == 0  # padding is mid-grey
    assert not torch.equal(
        make_batch(PHOTOS, config, 8, 3).batch.patches_TD[:16], ahead[0].batch.patches_TD[:16]
    )


def test_padding_does_not_count() -> None:
    target = torch.zeros(2, 4)
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    predicted = torch.tensor([[2.0, 0, 9, 9], [1, 1, 1, 1]])
    mse = losses.image_mse(predicted, target, mask, [(1, 1), (1, 1)])
    assert mse.tolist() == [2.0, 1.0]
    assert losses.psnr(torch.tensor([4.0, 0.04])).item() == pytest.approx(10)  # 0 and 20 dB


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = StageConfig(
        name="fsq", steps=100, crops=CropConfig(sides={1: 1}), learning_rate=1.0, warmup_steps=10,
        decay_share=0.5,
    )  # fmt: skip
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == learning_rate(config, 50) == 1.0
    assert learning_rate(config, 75) == pytest.approx(0.5)
    assert learning_rate(config, 99) == pytest.approx(0.02)


def test_photos_from_files_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    PHOTOS[0].save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"broken")
    photos = Photos([tmp_path])
    assert len(photos) == 1
    assert isinstance(photos[0], Image.Image)
    assert "b.jpg" in photos.skipped[0][0]
    table = pa.table({"key": ["x", "y"], "image": [(tmp_path / "a.png").read_bytes(), b"no"]})
    pq.write_table(table, tmp_path / "p.parquet")
    photos = Photos([tmp_path / "p.parquet"])
    assert (len(photos), len(photos.skipped)) == (1, 1)


def test_every_recipe_builds_on_the_meta_device() -> None:
    for recipe in (make() for make in recipes.RECIPES.values()):
        assert {stage.name for stage in recipe.stages} <= {"proximal", "fsq"}
        with torch.device("meta"):
            VisualTokenizer(recipe.model)
