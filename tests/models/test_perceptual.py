"""Distances in feature space: worked out by hand, and against transformers' DINOv2."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from viq.core.types import ViqError
from viq.image import patches
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.vision.dino import DinoTower
from viq.models.vision.tower import TowerConfig, VisionTower, stretch
from viq.train.tokenizer import perceptual
from viq.train.tokenizer.perceptual import Alignment, FeatureLoss, make_alignment
from viq.weights.checkpoint import CheckpointError

GRIDS = [(2, 3), (1, 1)]


def tower(depth: int = 2, **changes: Any) -> VisionTower:
    torch.manual_seed(0)
    shape = {"width": 24, "depth": depth, "heads": 3, "mlp_width": 40, "position_grid": 3}
    return VisionTower(TowerConfig(encoder=EncoderConfig(**{**shape, **changes}), side=48))


def pictures(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 16 * h, 16 * w, generator=generator) * 2 - 1 for h, w in GRIDS]


def packed(seed: int) -> Tensor:
    return patches.pack(pictures(seed)).patches_TD


# Features of a tower


def test_feature_loss_by_hand() -> None:
    model = tower()
    loss = FeatureLoss(model, layers=[1])
    a, b = packed(0), packed(1)
    distances = loss(a, b, GRIDS)
    for i, (x, y) in enumerate(zip(pictures(0), pictures(1), strict=True)):
        p, q = (model.encoder(patches.pack([image])) for image in (x, y))
        expected = (F.normalize(p, dim=-1) - F.normalize(q, dim=-1)).square().sum(-1).mean()
        torch.testing.assert_close(distances[i], expected)
    both = FeatureLoss(model, layers=[0, 1])(a, b, GRIDS)
    first = FeatureLoss(model, layers=[0])(a, b, GRIDS)
    torch.testing.assert_close(both, (first + distances) / 2)
    assert torch.equal(loss(a, a, GRIDS), torch.zeros(2))


def test_feature_loss_trains_pixels_alone() -> None:
    loss = FeatureLoss(tower())
    painted, real = packed(0).requires_grad_(), packed(1).requires_grad_()
    loss(painted, real, GRIDS).sum().backward()
    assert painted.grad is not None and painted.grad.abs().sum() > 0 and real.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize(
    ("depth", "layers"), [(1, {0}), (3, {0, 1, 2}), (4, {0, 1, 2, 3}), (27, {5, 12, 19, 26})]
)
def test_layers_by_default(depth: int, layers: set[int]) -> None:
    with torch.device("meta"):
        assert FeatureLoss(tower(depth)).layers == layers


def test_feature_loss_refuses() -> None:
    for layers in ([], [2], [-1]):
        with pytest.raises(ViqError, match=r"choose from the 2 blocks 0\.\.1"):
            FeatureLoss(tower(), layers=layers)
    config = TowerConfig(encoder=EncoderConfig(width=8, depth=1, heads=1, mlp_width=8,
                         patch_size=14, position_grid=2), side=28)  # fmt: skip
    with pytest.raises(ViqError, match="patches of 14 px"):
        FeatureLoss(VisionTower(config))


# LPIPS: its network is tested in test_lpips.py


def test_lpips_sees_whole_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        """Mean absolute difference."""

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(perceptual, "load_lpips", lambda net: {"vgg": Net()}[net])
    distances = perceptual.Lpips()(packed(0), packed(1), GRIDS)
    for distance, a, b in zip(distances, pictures(0), pictures(1), strict=True):
        torch.testing.assert_close(distance, (a - b).abs().mean())


# Alignment


def test_alignment_by_hand() -> None:
    model = tower()
    torch.manual_seed(1)
    alignment = make_alignment(model, 10)
    hidden = torch.randn(7, 10, requires_grad=True)
    distances = alignment(hidden, pictures(0), GRIDS)
    tokens = model.tokens(stretch(pictures(0), 48))
    # One patch, seen as 3x3 tokens: their weighted mean, heaviest in the middle.
    weights = torch.tensor([2.0, 3, 2])
    weights = (weights[:, None] * weights / 49).flatten()
    wanted = (weights[:, None] * tokens[1]).sum(0)
    projected = alignment.project(hidden)
    expected = 1 - F.cosine_similarity(projected[6], wanted, dim=0)
    torch.testing.assert_close(distances[1], expected)
    distances.sum().backward()
    trained = {name for name, p in alignment.named_parameters() if p.grad is not None}
    assert trained == {
        f"project.{fc}.{kind}" for fc in ("fc1", "fc2") for kind in ("weight", "bias")
    }
    assert hidden.grad is not None


def test_equal_grids_are_not_resampled() -> None:
    model = tower().eval()
    image = torch.rand(3, 48, 48) * 2 - 1
    alignment = Alignment(model, 24)
    alignment.project = nn.Identity()  # type: ignore[assignment]
    tokens = model.tokens(image[None])[0]
    assert alignment(tokens, [image], [(3, 3)]).abs().max() < 1e-6
    assert alignment(tokens.flip(0), [image], [(3, 3)]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dino(dino: Path) -> None:
    import transformers

    model = DinoTower.from_pretrained(dino, side=56)
    reference = transformers.Dinov2Model.from_pretrained(dino).eval()
    image = torch.rand(2, 3, 56, 56)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = reference(pixel_values=(image - mean) / std).last_hidden_state[:, 1:]
    tokens = model.tokens(image * 2 - 1)
    assert tokens.shape == (2, 16, 32) and (model.width, model.side) == (32, 56)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def test_alignment_from_folders(dino: Path, tmp_path: Path) -> None:
    alignment = make_alignment(dino, 10)
    assert isinstance(alignment.target, DinoTower) and alignment.target.side == 224
    assert alignment(torch.randn(7, 10), pictures(0), GRIDS).shape == (2,)
    assert [n for n, p in alignment.named_parameters() if p.requires_grad] == [
        "project.fc1.weight", "project.fc1.bias", "project.fc2.weight", "project.fc2.bias",
    ]  # fmt: skip
    tower().save_pretrained(tmp_path)
    assert isinstance(make_alignment(str(tmp_path), 10).target, VisionTower)


def test_dino_that_cannot_be_used(dino: Path, tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="multiple of 14 px"):
        DinoTower.from_pretrained(dino, side=225)
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"^[^\n]*no DINO can be loaded[^\n]*$"):
        make_alignment(tmp_path, 10)
    weights = load_file(dino / "model.safetensors")
    gone = weights.popitem()[0]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 weights are missing, such as {gone}"):
        make_alignment(tmp_path, 10)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="no SigLIP vision tower"):
        make_alignment(tmp_path, 10)
