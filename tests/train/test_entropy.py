"""Fitting an entropy model: it learns, it repeats, and one command does it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tokenizer
from typer.testing import CliRunner

from viq.cli import app
from viq.codec.entropy_model import EntropyModel
from viq.core.codes import Codes
from viq.core.types import ViqError, grid_of
from viq.models.tokenizer.loading import load
from viq.store.folder import Store
from viq.train.entropy import EntropyConfig, fit_entropy

pytest.importorskip("constriction")
LEVELS, STAMP = (5, 4, 3), "00000000000000aa"
SMALL = EntropyConfig(hidden=16, steps=150, patches=64, warmup_steps=10)


def smooth(count: int) -> list[Codes]:
    """Codes of which each is that of the patch to its left, or one more."""
    draw = np.random.default_rng(0)
    return [
        Codes((draw.integers(0, 2, (*grid_of((90, 90)), 4)).cumsum(1) % 60).astype(np.uint16),
              (90, 90), 0, STAMP)
        for _ in range(count)
    ]  # fmt: skip


def test_it_learns_and_repeats() -> None:
    codes = smooth(20)
    records = []
    model = fit_entropy(codes[:16], LEVELS, STAMP, SMALL, records.append)
    assert model.bits(codes[16:]) / sum(c.ids.size for c in codes[16:]) < 0.7 * np.log2(60)
    assert records[-1]["step"] == 150 and records[-1]["bits_per_code"] < records[0]["bits_per_code"]
    assert fit_entropy(codes[:16], LEVELS, STAMP, SMALL).digest == model.digest
    payloads = model.compress(codes)
    assert model.decompress(payloads, [c.size for c in codes], [0] * 20) == codes


def test_too_little_data() -> None:
    with pytest.raises(ViqError, match="at least 64 patches"):
        fit_entropy(smooth(1), LEVELS, STAMP, SMALL)
    with pytest.raises(ViqError, match="at least 64 patches"):
        fit_entropy([], LEVELS, STAMP, SMALL)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit to pictures, encode with it, read it back; then fit to the codes themselves."""
    monkeypatch.setattr("viq.train.entropy.EntropyConfig", lambda: SMALL)
    model, photos, store = tmp_path / "model", tmp_path / "photos", tmp_path / "codes"
    tokenizer().save_pretrained(model)
    photos.mkdir()
    draw = np.random.default_rng(0)
    for i in range(5):
        picture = draw.integers(0, 256, (100, 100, 3)).astype(np.uint8)
        Image.fromarray(picture).save(photos / f"{i}.png")
    (photos / "bad.png").write_bytes(b"nothing")

    def run(*words: object) -> dict:
        done = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert done.exit_code in (0, 3), done.output
        return json.loads(done.stdout)

    result = run("train", "entropy", "--model", model, "--data", photos)
    assert (result["images"], result["skipped"]) == (5, 1)
    assert EntropyModel.load(model).digest == result["stamp"] == load(model).entropy.digest
    run("encode", photos, "-o", store, "--model", model, "--compress")
    assert Store(store).info.entropy == result["stamp"]
    plain = tmp_path / "plain.parquet"
    run("encode", photos, "-o", plain, "--model", model)
    assert dict(Store(store)) == dict(Store(plain))
    assert run("store", "diff", store, plain)["equal"]
    before = (model / "entropy.safetensors").read_bytes()
    words = ["train", "entropy", "--model", str(model), "--data", str(plain)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "give --overwrite to replace it" in refused.output
    assert (model / "entropy.safetensors").read_bytes() == before
    bundled = CliRunner().invoke(app, ["train", "entropy", "--data", str(plain)])
    assert bundled.exit_code == 2 and "comes with the package: copy its folder" in bundled.output
    again = run(*words, "--overwrite")
    assert again["stamp"] == result["stamp"]
    copy = tmp_path / "copy"
    load(model).save_pretrained(copy)
    assert load(copy).entropy.digest == result["stamp"]
    tokenizer(seed=1).save_pretrained(model)
    with pytest.raises(ViqError, match="run viq train entropy again"):
        _ = load(model).entropy
