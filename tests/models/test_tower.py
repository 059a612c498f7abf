"""The vision tower: shapes, files, stretching, and agreement with the tokenizer's own modules."""

from pathlib import Path

import pytest
import torch
from torch import nn

from viq.image import patches
from viq.models.layers.blocks import Mlp
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.vision.tower import TowerConfig, VisionTower, stretch
from viq.weights.checkpoint import CheckpointError

SHAPE = EncoderConfig(width=24, depth=2, heads=3, mlp_width=40, position_grid=3)


def tower(**changes: object) -> VisionTower:
    torch.manual_seed(0)
    config = TowerConfig(**{"encoder": SHAPE, "side": 48, **changes})  # type: ignore[arg-type]
    return VisionTower(config).requires_grad_(False).eval()


def test_pooled_and_tokens() -> None:
    model, images = tower(), torch.rand(2, 3, 48, 48) * 2 - 1
    tokens, pooled = model.tokens(images), model(images)
    assert tokens.shape == (2, 9, 24) and pooled.shape == (2, 24)
    assert (model.side, model.width) == (48, 24)
    batch = patches.pack(list(images))  # the way the tokenizer runs its encoder
    packed = model.pool_norm(model.encoder(batch))
    torch.testing.assert_close(tokens.flatten(0, 1), packed)
    torch.testing.assert_close(pooled, model.pool_head(packed, [9, 9]))
    with pytest.raises(ValueError, match="stretch them first"):
        model(images[..., :32])


def test_gelu_is_swapped_everywhere() -> None:
    exact, tanh = tower(), tower(gelu="tanh")
    for model, kind in ((exact, "none"), (tanh, "tanh")):
        activations = [m.act for m in model.modules() if isinstance(m, Mlp)]
        assert len(activations) == 3  # two blocks and the pooling head
        assert all(isinstance(a, nn.GELU) and a.approximate == kind for a in activations)
    images = torch.rand(1, 3, 48, 48)
    assert 0 < float((exact(images) - tanh(images)).abs().max()) < 1e-2


@pytest.mark.parametrize("changes", [{"side": 40}, {"side": 0}, {"gelu": "relu"}])
def test_impossible_configs(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        tower(**changes)


def test_round_trip(tmp_path: Path) -> None:
    model, images = tower(gelu="tanh", name="mine"), torch.rand(1, 3, 48, 48)
    model.save_pretrained(tmp_path)
    again = VisionTower.from_pretrained(tmp_path)
    assert again.config == model.config and not again.training
    assert torch.equal(again(images), model(images))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    larger = VisionTower.from_pretrained(tmp_path, side=64, dtype=torch.bfloat16)
    assert larger.tokens(torch.rand(1, 3, 64, 64)).shape == (1, 16, 24)
    assert larger.pool_head.latent.dtype == torch.bfloat16


def test_strict_loading(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    other = tower(encoder=EncoderConfig(width=24, depth=1, heads=3, mlp_width=40), side=48)
    config = (tmp_path / "config.json").read_bytes()
    other.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError, match=r"12 missing in the file.*blocks\.1.*another shape"):
        VisionTower.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(config.replace(b'"side": 48', b'"side": 50'))
    with pytest.raises(CheckpointError, match="side 50 must be a multiple of 16"):
        VisionTower.from_pretrained(tmp_path)


def test_stretch() -> None:
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(3, 2, 4)
    out = stretch([ramp, ramp[:, :, :2]], 2)
    assert out.shape == (2, 3, 2, 2)
    assert out[0, 0].tolist() == [[0.5, 2.5]] * 2  # two neighbours each, no wider average
    assert torch.equal(out[1], ramp[:, :, :2])
    assert torch.equal(stretch(ramp, 2), out[:1])
    wide = stretch(torch.arange(8.0).expand(3, 1, 8), 2)
    assert wide[0, 0, 0].tolist() == [1.5, 5.5]  # 2 of 4 values: without antialiasing
