"""Parity with numbers of the official implementation (fp32, tiny widths, every mechanism).

The fixtures and their tolerances are described in `tests/golden/README.md`. e is the largest
absolute difference over the largest absolute reference value.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from viq.bench.gpu.parity import golden_model
from viq.core.levels import PRESETS
from viq.core.types import CODES_PER_PATCH
from viq.image import patches
from viq.models.layers import rope2d
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.fsq import FSQ
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.siglip import resample_patch_kernel, resample_position_grid

GOLDEN = Path(__file__).parents[1] / "golden"


def fixture(name: str, part: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / f"{part}.safetensors")


def assert_close(ours: Tensor, reference: Tensor, e: float) -> None:
    assert ours.shape == reference.shape
    error = (ours.double() - reference.double()).abs().max() / reference.double().abs().max()
    assert error < e


@pytest.fixture(scope="module")
def model() -> VisualTokenizer:
    return golden_model(GOLDEN)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    inputs = fixture("encoder_tiny", "inputs")
    return [inputs[f"image.{i}"].squeeze(0) for i in range(6)]


@pytest.mark.parametrize("size", PRESETS)
def test_fsq(size: str) -> None:
    settings = json.loads((GOLDEN / "fsq" / "config.json").read_text())["sizes"][size]
    inputs, expected = fixture("fsq", "inputs"), fixture("fsq", "outputs")
    fsq = FSQ(PRESETS[size])
    d = len(fsq.levels)
    assert list(fsq.levels) == settings["levels"] and fsq.basis == settings["basis"]
    torch.testing.assert_close(
        torch.tensor(fsq.half), expected[f"{size}.half_l"], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        torch.tensor(fsq.shift), expected[f"{size}.shift"], rtol=0, atol=1e-6
    )

    z = inputs["z"][:, :d].clone().requires_grad_()
    quantized = fsq.quantize(z)
    torch.testing.assert_close(quantized, expected[f"{size}.quantized"], rtol=0, atol=1e-6)
    (quantized * inputs["cotangent"][:, :d]).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected[f"{size}.grad_z"], rtol=1e-5, atol=1e-5)

    torch.testing.assert_close(fsq.bound(z)[:512], expected[f"{size}.bounded"], rtol=0, atol=1e-5)
    levels = expected[f"{size}.level_indices"].long()
    assert torch.equal(fsq.level_indices(z)[:512], levels)
    indices = expected[f"{size}.indices"].long()
    assert torch.equal(fsq.indices(z), indices)
    assert torch.equal(
        fsq.indices(inputs["edge_z"][:, :d]), expected[f"{size}.edge_indices"].long()
    )
    torch.testing.assert_close(fsq.decode(indices), quantized.detach(), rtol=0, atol=1e-6)


def test_fsq_codebook() -> None:
    table = fixture("fsq", "outputs")["2k.codebook"]
    torch.testing.assert_close(FSQ(PRESETS["2k"]).decode(torch.arange(2304)), table)


@pytest.mark.parametrize("head_dim", [16, 256])
def test_rope(head_dim: int) -> None:
    inputs, expected = fixture("rope2d", "inputs"), fixture("rope2d", "outputs")
    freqs = rope2d.frequencies(4, head_dim)
    torch.testing.assert_close(freqs, expected[f"d{head_dim}.freqs"], rtol=0, atol=2e-5)
    for rows, cols in ((1, 1), (1, 7), (5, 3), (16, 16)):
        theta = expected[f"d{head_dim}.theta.{rows}x{cols}"]
        ours = rope2d.angles((rows, cols), 4, head_dim).view(theta.shape)
        torch.testing.assert_close(ours, theta, rtol=0, atol=2e-5)
    x = inputs[f"d{head_dim}.x.5x3"]
    rotated = rope2d.rotate(x.reshape(15, 4, head_dim), rope2d.angles((5, 3), 4, head_dim))
    reference = expected[f"d{head_dim}.rotated.5x3"]
    torch.testing.assert_close(rotated.view(reference.shape), reference, rtol=0, atol=1e-4)


def test_resampling_of_pretrained_grids() -> None:
    inputs, expected = fixture("resize", "inputs"), fixture("resize", "outputs")
    position = resample_position_grid(inputs["pos_embed"], 16)
    assert_close(position, expected["pos_embed"], 1e-5)
    kernel = resample_patch_kernel(inputs["patch_weight"], 16)
    assert_close(kernel, expected["patch_weight"], 1e-5)


def test_position_of_each_image() -> None:
    from viq.models.tokenizer.encoder import Encoder

    expected = fixture("resize", "outputs")
    config = EncoderConfig(width=8, depth=0, heads=1, mlp_width=8, position_grid=16)
    encoder = Encoder(config).requires_grad_(False)
    encoder.position.copy_(expected["pos_embed"].view(16, 16, 8))
    grids = [key.removeprefix("per_image.") for key in expected if key.startswith("per_image.")]
    assert grids
    for grid in grids:
        rows, cols = map(int, grid.split("x"))
        assert_close(encoder._positions((rows, cols))[None], expected[f"per_image.{grid}"], 1e-5)


def test_pixel_normalisation() -> None:
    inputs, expected = fixture("preprocess", "inputs"), fixture("preprocess", "outputs")
    ours = patches.normalize(inputs["image.0"])
    assert_close(ours, expected["native_pixels.0"], 1e-6)
    assert_close(patches.normalize(expected["cropped_u8.0"]), expected["demo_pixels.0"], 1e-6)


def test_encoder_packed(model: VisualTokenizer, images: list[Tensor]) -> None:
    expected = fixture("encoder_tiny", "outputs")
    batch = patches.pack(images)
    assert [list(g) for g in batch.grids_hw] == expected["list.grid_sizes"].tolist()

    positions = torch.cat([model.encoder._positions(grid) for grid in batch.grids_hw])
    embedded = model.encoder.patch_embed(batch.patches_TD)
    lengths = patches.lengths_of(batch.grids_hw)
    parts = zip(embedded.split(lengths), positions.split(lengths), strict=True)
    for i, (patch, position) in enumerate(parts):
        assert_close(patch[None], expected[f"list.patch.{i}"], 1e-5)
        assert_close(position[None], expected[f"list.pos.{i}"], 1e-5)

    tokens = model.encoder.embed(batch)
    assert_close(tokens[None], expected["list.tokens_in"], 1e-5)
    block0 = model.encoder.blocks[0](tokens, lengths)
    assert_close(block0[None], expected["list.block0"], 2e-5)
    trunk = model.encoder(batch)
    assert_close(trunk[None], expected["list.trunk"], 2e-5)

    head = model.quantizer
    pre = head.pre_norm(trunk)
    assert_close(pre[None], expected["list.fusion_norm"], 2e-5)
    for block in head.pre_blocks:
        pre = block(pre, lengths)
    assert_close(pre[None], expected["list.fusion_pre"], 2e-5)
    slots = head.expand(trunk, batch.grids_hw)
    assert_close(slots.flatten(0, 1)[None], expected["list.expanded"], 2e-5)
    slots = head.bottleneck.blocks[0](slots, batch.grids_hw)
    assert_close(slots.flatten(0, 1)[None], expected["list.fsq_block0"], 2e-5)
    for block in head.bottleneck.blocks[1:]:
        slots = block(slots, batch.grids_hw)
    assert_close(slots.flatten(0, 1)[None], expected["list.fsq_attn"], 2e-5)

    output = model(batch)
    assert_close(output.z_TSd.flatten(0, 1)[None], expected["list.z"], 5e-5)
    assert_close(output.codes_TSd.flatten(0, 1)[None], expected["list.codes"], 1e-6)
    for merge in (head.merge, head.merge_unfolded):
        assert_close(merge(output.codes_TSd)[None], expected["list.merged"], 2e-5)
    for i, features in enumerate(output.features_TC.split(lengths)):
        assert_close(features[None], expected[f"list.features.{i}"], 2e-5)
    for i, ids in enumerate(model.ids(batch).split(lengths)):
        assert torch.equal(ids.flatten(), expected[f"list.indices.{i}"].flatten().long())
    pooled = model.pooled(output.features_TC, batch.grids_hw)
    assert_close(pooled, expected["list.pooled"], 2e-5)


def test_encoder_alone_equals_packed(model: VisualTokenizer, images: list[Tensor]) -> None:
    expected = fixture("encoder_tiny", "outputs")
    for i, image in enumerate(images):
        ids = model.ids(patches.pack([image]))
        assert torch.equal(ids.flatten(), expected[f"list.indices.{i}"].flatten().long())


def test_encoder_batch(model: VisualTokenizer) -> None:
    expected = fixture("encoder_tiny", "outputs")
    batch = patches.pack(list(fixture("encoder_tiny", "inputs")["batch"]))
    output = model(batch)
    indices = expected["batch.indices"].flatten().long()
    assert torch.equal(model.ids(batch).flatten(), indices)
    features = expected["batch.features"]
    assert_close(output.features_TC.view(features.shape), features, 2e-5)
    assert_close(model.pooled(output.features_TC, batch.grids_hw), expected["batch.pooled"], 2e-5)


def test_codes_to_features(model: VisualTokenizer) -> None:
    inputs, expected = fixture("embedder_tiny", "inputs"), fixture("embedder_tiny", "outputs")
    for i in range(6):
        ids = inputs[f"indices.{i}"].reshape(-1, CODES_PER_PATCH)
        assert_close(model.features(ids)[None], expected[f"features.{i}"], 2e-5)
    ids = inputs["batch_indices"].reshape(-1, CODES_PER_PATCH)
    features = expected["batch_features"]
    assert_close(model.features(ids).view(features.shape), features, 2e-5)


def test_codes_to_latents(model: VisualTokenizer) -> None:
    inputs, expected = fixture("drawer_tiny", "inputs"), fixture("drawer_tiny", "outputs")
    settings = json.loads((GOLDEN / "drawer_tiny" / "config.json").read_text())
    head = model.latent_head
    assert head is not None
    for i, grid in enumerate(tuple(g) for g in settings["grid_sizes_hw"]):
        features = model.features(inputs[f"indices.{i}"].reshape(-1, CODES_PER_PATCH))
        assert_close(head.adapt(features, [grid])[None], expected[f"vae_pre.{i}"], 2e-5)
        assert_close(head(features, [grid])[0][None], expected[f"latent.{i}"], 1e-4)
