"""The transform code: an orthogonal filter, codes that come back, and any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from viq.core.types import ViqError
from viq.data.synthetic.draw import draw
from viq.image.patches import denormalize, normalize, patchify
from viq.metrics.images import psnr
from viq.models.tokenizer.lapped import LappedFilter
from viq.models.tokenizer.transform_code import CODEBOOK, TransformCode, TransformConfig
from viq.train.tokenizer.scalar_quantizers import allot, lloyd
from viq.train.tokenizer.transform_fit import TransformFitConfig, fit_transform, windows_of

CONFIG = TransformConfig(classes=8, basis=49, coefficients=12, levels=16)


def pictures(count: int, first: int = 0) -> list[Image.Image]:
    kinds = ("scene", "gradient", "chart", "text")
    return [draw(kinds[i % 4], (96, 128), first + i).image for i in range(count)]


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return windows_of(pictures(40), 1600, scales=(0.8, 1.25))


@pytest.fixture(scope="module")
def code(windows: np.ndarray) -> TransformCode:
    return fit_transform(windows, CONFIG, TransformFitConfig(rounds=3))


def patches(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, tuple[int, int]]:
    pixels = normalize(np.asarray(draw("scene", (height, width), 500 + seed).image))
    return patchify(pixels), (height // 16, width // 16)


def rotated() -> LappedFilter:
    lapped = LappedFilter()
    generator = torch.Generator().manual_seed(0)
    lapped.rotation.copy_(torch.linalg.qr(torch.randn(8, 8, generator=generator))[0])
    return lapped


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (48, 80)])
def test_the_filter_is_orthogonal_and_keeps_flat_pictures(size: tuple[int, int]) -> None:
    lapped = rotated()
    pixels = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    filtered = lapped(pixels)
    assert torch.allclose(lapped.inverse(filtered), pixels, atol=1e-5)
    assert filtered.square().sum() == pytest.approx(float(pixels.square().sum()), rel=1e-5)
    assert torch.allclose(lapped(torch.full((3, *size), 0.3)), torch.full((3, *size), 0.3))
    assert torch.equal(filtered[:, :8, :8], pixels[:, :8, :8])  # no border there


def test_ids_are_codes_and_come_back(code: TransformCode) -> None:
    found = [patches(64, 96), patches(16, 16, 1), patches(32, 16, 2)]
    ids_TS = code.ids(torch.cat([x for x, _ in found]), [grid for _, grid in found])
    assert ids_TS.shape == (24 + 1 + 2, 4) and ids_TS.dtype == torch.int64
    assert 0 <= int(ids_TS.min()) and int(ids_TS.max()) < CODEBOOK
    assert torch.equal(code.pack(code.unpack(ids_TS)), ids_TS)
    alone = torch.cat([code.ids(x, [grid]) for x, grid in found])
    assert torch.equal(alone, ids_TS)  # whatever is packed beside it
    assert code.ids(torch.zeros(0, 768), []).shape == (0, 4)


def test_more_codes_bring_more_of_the_picture(code: TransformCode) -> None:
    x, grid = patches(96, 128, 3)
    original = denormalize(normalize(np.asarray(draw("scene", (96, 128), 503).image))).numpy()
    ids_TS = code.ids(x, [grid])

    def quality(kept: int) -> float:
        cut = ids_TS.clone()
        indices = code.unpack(cut)
        if not kept:
            indices = indices._replace(levels_TQ=torch.zeros_like(indices.levels_TQ))
        values_TV = code.dequantize(code.pack(indices))
        return psnr(original, denormalize(code.pixels(values_TV, grid)).numpy())

    assert quality(4) > 21 and quality(4) > quality(0) + 3


def test_every_fourth_patch_leaves_its_last_code_to_meaning(windows: np.ndarray) -> None:
    config = replace(CONFIG, detail=32_000)
    code = fit_transform(windows, config, TransformFitConfig(rounds=2))
    x, grid = patches(48, 80, 4)
    meaning = torch.arange(6).view(2, 3) * 5_000
    ids_TS = code.ids(x, [grid], [meaning])
    ids = ids_TS.unflatten(0, grid)
    assert torch.equal(ids[::2, ::2, 3] - 32_000, meaning)
    others = torch.ones(grid, dtype=torch.bool)
    others[::2, ::2] = False
    assert int(ids[others][:, 3].max()) < 32_000
    found = code.meaning(ids_TS).unflatten(0, grid)
    assert torch.equal(found[::2, ::2], meaning) and bool((found[others] == -1).all())
    # What the fourth code says changes no pixel; detail comes back whichever it is.
    again = code.ids(x, [grid])
    assert torch.equal(code.dequantize(again), code.dequantize(ids_TS))
    shown = denormalize(code.pixels(code.dequantize(ids_TS), grid)).numpy()
    original = np.asarray(draw("scene", (48, 80), 504).image)
    assert psnr(original, shown) > 20


def test_foreign_ids_are_read_as_something(code: TransformCode) -> None:
    ids_TS = torch.randint(0, CODEBOOK, (500, 4), generator=torch.Generator().manual_seed(0))
    values_TV = code.dequantize(ids_TS)
    assert values_TV.shape == (500, CONFIG.basis) and bool(values_TV.isfinite().all())
    extreme = code.dequantize(torch.full((1, 4), CODEBOOK - 1))
    assert bool(extreme.isfinite().all())


def test_the_fit_is_the_same_again_and_better_with_more_rounds(windows: np.ndarray) -> None:
    seen: list[dict[str, float]] = []
    one = fit_transform(windows, CONFIG, TransformFitConfig(rounds=2), seen.append)
    two = fit_transform(windows, CONFIG, TransformFitConfig(rounds=2))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))
    assert [record["round"] for record in seen] == [1, 2]
    assert seen[1]["psnr"] >= seen[0]["psnr"] - 0.05
    with pytest.raises(ViqError, match="8 classes need 640"):
        fit_transform(windows[:600], CONFIG)
    basis = one.get_buffer("basis")
    assert torch.allclose(basis.T @ basis, torch.eye(CONFIG.basis), atol=1e-4)


def test_digits_fit_into_their_codes() -> None:
    config = TransformConfig()
    assert config.first == 5
    variances = [100 / (i + 1) ** 2 for i in range(config.coefficients)]
    radices = np.array(allot(variances, config))
    products = radices.prod(1)
    assert products[0] <= 5 and products[1:].max() <= CODEBOOK
    assert products[1:].min() > CODEBOOK / 2  # room is used
    levels = radices.prod(0)
    assert levels.max() <= config.levels and levels[0] > 4 * levels[15] and levels[15] > levels[-1]


def test_lloyd_finds_centres_of_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-5.0, 0.0, 4.0])
    values = torch.cat([c + 0.1 * torch.randn(100, generator=generator) for c in centres])
    assert torch.allclose(lloyd(values, 3, generator), centres, atol=0.1)
    assert lloyd(torch.zeros(0), 4, generator).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "wrong", [{"classes": 64_001}, {"classes": 2000, "means": (8, 8)}, {"basis": 769},
              {"means": (8,)}, {"levels": 0}]
)  # fmt: skip
def test_configs_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError):
        TransformConfig(**wrong)
