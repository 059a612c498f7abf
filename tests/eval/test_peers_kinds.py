"""Shapes of other tokenizers that the golden files do not have: switches, widths, sizes."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from golden_peers import GOLDEN
from safetensors.torch import save_file
from torch import nn

from viq.eval.peers import load_peer
from viq.eval.peers.network import SquarePeer
from viq.eval.peers.qlip import EncoderConfig, Qlip
from viq.eval.peers.qlip_tower import TowerConfig, rope_angles, rotate
from viq.eval.peers.simvq import SimVQ, SimVQConfig
from viq.eval.peers.unitok import Arguments, UniTok
from viq.eval.peers.vitamin import PUBLISHED, Widths
from viq.weights.checkpoint import building

ENCODER = EncoderConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
    quantizer="bsq",
    quantizer_cfg={"embed_dim": 10},
    quantizer_embed_type="mlp",
)
DECODER = TowerConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
)


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def loaded(kind: str, network: nn.Module, folder: Path) -> SquarePeer:
    save_file(filled(network).state_dict(), folder / "model.safetensors")
    peer = load_peer(kind, folder)
    assert isinstance(peer, SquarePeer)
    return peer


def qlip(encoder: EncoderConfig, decoder: TowerConfig, folder: Path) -> SquarePeer:
    preprocessor = json.loads((GOLDEN / "qlip" / "preprocessor_config.json").read_text())
    preprocessor |= {"crop_size": 32, "size": 40}  # numbers, as in old files
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    configs = {"vision_config": vars(encoder), "decoder_config": vars(decoder)}
    (folder / "config.json").write_text(json.dumps(configs))
    return loaded("qlip", Qlip(encoder, decoder), folder)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ({}, {}),
        ({"swiglu": True}, {"rope": True, "subln": True}),
        ({"rope": True, "q_bias": False, "v_bias": False}, {"swiglu": True, "k_bias": False}),
        ({"hidden_size_post_q": 64, "hidden_act": "quick_gelu"}, {"hidden_size": 64}),
        ({"quantizer_embed_type": "identity", "quantizer_cfg": {"embed_dim": 32}}, {}),
        ({"quantizer_l2_norm": True, "quantizer_cfg": {"embed_dim": 62, "l2_norm": False}}, {}),
    ],
)
def test_switches_of_qlip(encoder: dict[str, Any], decoder: dict[str, Any], tmp_path: Path) -> None:
    config = replace(ENCODER, **encoder)
    peer = qlip(config, replace(DECODER, **decoder), tmp_path)
    [codes] = peer.encode([tiny.picture(0, 50, 40)])
    assert codes.shape == (4,) and 0 <= codes.min() and codes.max() < 2**config.bits
    assert len(set(codes.tolist())) > 1
    assert peer.decode([codes])[0].size == (32, 32)
    assert peer.bits_per_pixel == 4 * config.bits / 32**2
    assert peer.features([tiny.picture(0)])[0].shape == (4, config.feature_width)


def test_weights_that_switches_of_qlip_ask_for() -> None:
    def names(**switches: bool) -> set[str]:
        layer = "vision_model.encoder.layers.0."
        state = Qlip(replace(ENCODER, **switches), DECODER).state_dict()
        return {name.removeprefix(layer) for name in state if name.startswith(layer)}

    plain = names()
    assert {"mlp.fc1.weight", "mlp.fc2.bias", "self_attn.k_proj.bias"} <= plain
    assert names(swiglu=True) - plain == {
        f"mlp.w{i}.{p}" for i in "123" for p in ("weight", "bias")
    }
    norms = {f"{name}.{part}" for name in ("mlp.ffn_ln", "self_attn.inner_attn_ln")
             for part in ("weight", "bias")}  # fmt: skip
    assert names(subln=True) - plain == norms
    assert plain - names(k_bias=False) == {"self_attn.k_proj.bias"}
    assert names(rope=True) == plain


def test_rotary_positions_of_qlip_see_only_distances() -> None:
    """Products of a turned query and key are the same for all pairs of places equally far apart,
    and a grid twice as fine has its places at half the distance."""
    angles = rope_angles(8, 16)
    q, k = torch.randn(2, 1, 1, 1, 16)
    turned_q, turned_k = (rotate(x.expand(1, 1, 65, 16), angles)[0, 0] for x in (q, k))
    assert torch.equal(turned_q[0], q[0, 0, 0])  # the class token
    products = (turned_q[1:] @ turned_k[1:].T).unflatten(0, (8, 8)).unflatten(-1, (8, 8))
    torch.testing.assert_close(products[0, 0, 2, 1], products[5, 6, 7, 7], rtol=1e-4, atol=1e-4)
    assert abs(products[0, 0, 2, 1] - products[0, 0, 1, 2]) > 1e-3
    fine = rope_angles(16, 16).unflatten(0, (16, 16))
    torch.testing.assert_close(fine[::2, ::2].flatten(0, 1), angles)


@pytest.mark.parametrize("projection", ["attn", "linear"])
def test_projections_of_unitok(projection: Any, tmp_path: Path) -> None:
    arguments = Arguments(
        model="mine", img_size=48, vocab_size=96, vocab_width=8, num_codebooks=2,
        quant_proj=projection, resize_ratio=1.5,
    )  # fmt: skip
    widths = Widths(stem=8, stage=12, trunk=32, depth=1, heads=2)
    (tmp_path / "config.json").write_text(json.dumps(vars(arguments)))
    (tmp_path / "info.json").write_text('{"widths": {"heads": 2}}')
    peer = loaded("unitok", UniTok(arguments, widths), tmp_path)
    [codes] = peer.encode([tiny.picture(0, 50, 40)])
    assert codes.shape == (2, 9) and 0 <= codes.min() and codes.max() < 48
    assert peer.decode([codes])[0].size == (48, 48)
    assert math.isclose(peer.bits_per_pixel, 18 * math.log2(48) / 48**2)


def test_published_unitok() -> None:
    """Places, codes and channels of the table of its authors; no memory is taken."""
    with building("here"):
        network = UniTok(Arguments(model="vitamin_large", vocab_size=32768),
                         PUBLISHED["vitamin_large"])  # fmt: skip
    assert (network.code_shape, network.code_count) == ((8, 256), 4096)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["quantizer.codebooks.7.codebook.weight"] == (4096, 8)
    assert shapes["quant_proj.attn.qkv.weight"] == (3072, 1024)
    assert shapes["post_quant_proj.attn.qkv.weight"] == (3072, 64)
    assert shapes["encoder.blocks.30.mlp.w0.weight"] == (2048, 1024)
    assert shapes["decoder.up_conv3.0.up.conv.weight"] == (640, 640, 3, 3)


def test_widths_of_simvq(tmp_path: Path) -> None:
    config = SimVQConfig(stem=32, widths=(32, 64, 64, 96), blocks=2, codes=37, code_width=5)
    (tmp_path / "config.json").write_text('{"size": 40}')
    peer = loaded("simvq", SimVQ(config, 40), tmp_path)
    [codes] = peer.encode([tiny.picture(0, 50, 40)])
    assert codes.shape == (5, 5) and 0 <= codes.min() and codes.max() < 37
    assert peer.decode([codes])[0].size == (40, 40)
    assert math.isclose(peer.bits_per_pixel, 25 * math.log2(37) / 40**2)


def test_the_nearest_row_of_simvq_is_the_nearest(tmp_path: Path) -> None:
    network: Any = filled(SimVQ(SimVQConfig(stem=32, widths=(32,), blocks=1, codes=50,
                                            code_width=6), 8))  # fmt: skip
    z = torch.randn(200, 6)
    distances = (z[:, None] - network.quantize.table_ed[None]).square().sum(-1)
    assert torch.equal(network.quantize.nearest(z), distances.argmin(1))


def test_pictures_of_128_px_without_a_config_of_simvq(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "simvq" / "epoch=0-step=1.ckpt", tmp_path)
    peer = load_peer("simvq", tmp_path)
    assert peer.prepare(tiny.picture(0, 200, 300)).size == (128, 128)
    assert peer.encode([np.zeros((9, 9, 3), np.uint8)])[0].shape == (32, 32)
