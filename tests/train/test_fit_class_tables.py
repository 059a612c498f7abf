"""Tables of transform codes are fitted by counting: they know what neighbours have in common."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from viq.cli import app
from viq.codec.class_tables import ClassTables
from viq.core.codes import Codes
from viq.core.files import BUNDLED
from viq.core.types import ViqError, grid_of
from viq.models.tokenizer.semantic import SemanticConfig
from viq.models.tokenizer.transform_code import TransformConfig
from viq.models.tokenizer.transform_quantizer import TransformQuantizer
from viq.store.rows import CodesWriter, StoreInfo
from viq.train.class_tables import _smooth, fit_class_tables

pytest.importorskip("constriction")
STAMP = "00000000000000aa"
CLASSES, FIRST, DETAIL = 8, 200, 32_000


def quantizer() -> TransformQuantizer:
    """Of 8 classes, each of which leaves 6 values of the first code and 1000 of the others."""
    config = TransformConfig(
        classes=CLASSES, basis=49, coefficients=12, levels=60, means=(8, 5), detail=DETAIL
    )
    made = TransformQuantizer(100, config, SemanticConfig(reader=24))
    radices = torch.ones(CLASSES, 4, 12)
    radices[:, 0, 0], radices[:, 1:, :3] = 6, 10
    made.code.radices.copy_(radices)
    return made


def smooth_codes(seed: int, size: tuple[int, int] = (480, 640)) -> Codes:
    """All patches have one class and one mean; the rests are noise. Of each 2x2 patches the
    first says a meaning of the phase that its place has."""
    draw, (rows, cols) = np.random.default_rng(seed), grid_of(size)
    head = draw.integers(0, CLASSES * 40)
    ids = draw.integers(0, [6, 1000, 1000, 1000], (rows, cols, 4))
    ids[..., 0] += head * FIRST
    y, x = np.indices((rows, cols))
    meant = (y % 2 == 0) & (x % 2 == 0)
    said = DETAIL + (2 * (y // 2 % 2) + x // 2 % 2) * 8000 + draw.integers(0, 8000, y.shape)
    ids[..., 3] = np.where(meant, said, ids[..., 3])
    return Codes(ids.astype(np.uint16), size, 0, STAMP)


def test_what_neighbours_share_costs_little() -> None:
    kept, held_out = [smooth_codes(i) for i in range(120)], [smooth_codes(999)]
    model = fit_class_tables(kept, quantizer(), STAMP)
    patches = held_out[0].ids.shape[0] * held_out[0].ids.shape[1]
    rests = np.log2(6) + 2 * np.log2(1000) + 0.75 * np.log2(1000) + 0.25 * np.log2(8000)
    spent = model.bits(held_out) / patches - rests
    assert 0 < spent < 0.6 * np.log2(CLASSES * 40)
    even = ClassTables(
        model.tensors | {
            name: np.ones_like(model.tensors[name])
            for name in ("coarse", "fine", "high", "low", "kind")
        }, model.levels, STAMP,
    )  # fmt: skip
    assert even.bits(held_out) / patches - rests > np.log2(CLASSES * 40)
    payloads = model.compress(held_out)
    assert model.decompress(payloads, [(480, 640)], [0]) == held_out


def test_it_repeats_and_passes_over_impossible_pictures() -> None:
    kept = [smooth_codes(i) for i in range(3)]
    odd = Codes(np.full((3, 3, 4), 63_999, np.uint16), (48, 48), 0, STAMP)
    one, two = (fit_class_tables(codes, quantizer(), STAMP) for codes in (kept, [odd, *kept]))
    assert one.digest == two.digest
    with pytest.raises(ViqError, match="at least one picture"):
        fit_class_tables([odd], quantizer(), STAMP)
    with pytest.raises(ViqError, match="at least one picture"):
        fit_class_tables([], quantizer(), STAMP)


def test_pictures_of_one_patch_are_enough() -> None:
    codes = [smooth_codes(0, (16, 16))]
    model = fit_class_tables(codes, quantizer(), STAMP)
    assert model.decompress(model.compress(codes), [(16, 16)], [0]) == codes


def test_few_counts_lean_on_those_of_all() -> None:
    counts = np.zeros((2, 3, 4))
    counts[0, 0] = [3000, 0, 0, 0]
    counts[1, 1] = [0, 0, 1, 0]
    smoothed = _smooth(counts, 3)
    np.testing.assert_allclose(smoothed.sum(2), 1)
    assert (smoothed[..., 3] == 0).all() and (smoothed[..., :3] > 0).all()
    assert smoothed[0, 0, 0] > 0.99 > smoothed[1, 1, 0] > smoothed[1, 1, 2] > smoothed[1, 2, 1]


def test_the_command_fits_the_bundled_tokenizer_to_a_store(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(BUNDLED / "viq-transform" / name)
    stamp = json.loads((model / "config.json").read_text())["fingerprint"]
    info = StoreInfo(model="viq-transform", fingerprint=stamp, levels=(8, 8, 8, 5, 5, 5))
    ids = np.zeros((4, 6, 4), np.uint16)
    with CodesWriter(tmp_path / "codes.parquet", info) as writer:
        for i in range(21):
            writer.add(str(i), Codes(ids, (64, 96), 0, stamp))
    words = ["train", "entropy", "--model", model, "--data", tmp_path / "codes.parquet", "--json"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["images"] == 21 and found["bits_per_code"] < 14
    assert ClassTables.load(model).digest == found["stamp"]
