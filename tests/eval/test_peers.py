"""Tokenizers of others against numbers of their official code (tests/golden/peers)."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from golden_peers import CODES, GOLDEN, PLACES, WEIGHTS, WITH_CODES, copy, golden
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from viq.core.errors import CodesError
from viq.eval.peers import load_peer
from viq.eval.peers.network import SquarePeer
from viq.image.open import ImageError
from viq.weights.checkpoint import CheckpointError


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours.double() - reference.double()).abs().max() / reference.double().abs().max())


@pytest.fixture(scope="module", params=WITH_CODES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def peer(kind: str) -> SquarePeer:
    loaded = load_peer(kind, GOLDEN / kind)
    assert isinstance(loaded, SquarePeer)
    return loaded


@pytest.fixture(scope="module")
def images(kind: str) -> list[np.ndarray]:
    stored = golden(kind, "inputs")
    return [stored[f"image.{i}"].numpy() for i in range(3)]


# What the official code gives


def test_preprocessing(kind: str, peer: SquarePeer, images: list[np.ndarray]) -> None:
    values = torch.cat([peer.pictures.to_values(peer.prepare(image)) for image in images])
    reference = golden(kind, "outputs")["pixel_values"]
    torch.testing.assert_close(values, reference, rtol=0, atol=1e-6)


def test_values_before_quantisation(kind: str, peer: SquarePeer) -> None:
    outputs, network = golden(kind, "outputs"), peer.network
    ways: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "qlip": lambda network, values: network.vision_model.z(values),
        "unitok": lambda network, values: network.quant_proj(network.encoder(values)),
        "simvq": lambda network, values: network.encoder(values),
    }
    assert error(ways[kind](network, outputs["pixel_values"]), outputs["z"]) < 1e-5


def test_codes_are_the_same(kind: str, peer: SquarePeer, images: list[np.ndarray]) -> None:
    codes, reference = np.stack(peer.encode(images)), golden(kind, "outputs")[CODES[kind]].numpy()
    assert codes.dtype == reference.dtype
    np.testing.assert_array_equal(codes, reference)


def test_bits_of_qlip_are_the_same() -> None:
    peer, outputs = load_peer("qlip", GOLDEN / "qlip"), golden("qlip", "outputs")
    network: Any = peer.network  # type: ignore[attr-defined]
    assert torch.equal(network.bits_of(outputs["indices_exact"]), outputs["bits"].bool())


def test_features(kind: str, peer: SquarePeer, images: list[np.ndarray]) -> None:
    outputs = golden(kind, "outputs")
    reference = outputs.get("features")
    if reference is None:  # SimVQ: what is quantised is what there is to read
        reference = outputs["quantized"].flatten(2).transpose(1, 2)
    features = peer.features(images)
    assert all(one.dtype == np.float32 and len(one) == PLACES[kind] for one in features)
    assert error(torch.from_numpy(np.stack(features)), reference) < 1e-5


def test_pictures_that_come_back(kind: str, peer: SquarePeer, images: list[np.ndarray]) -> None:
    outputs = golden(kind, "outputs")
    codes = outputs[CODES[kind]]
    reference = outputs.get("reconstruction_unclamped", outputs.get("reconstruction"))
    assert reference is not None
    assert error(peer.network.pixels(codes.long()), reference) < 2e-5
    decoded = peer.decode(list(codes.numpy()))
    assert [one.size for one in decoded] == [peer.prepare(image).size for image in images]
    apart = np.abs(np.stack(list(map(np.asarray, decoded))).astype(int)
                   - outputs["reconstruction_u8"].numpy())  # fmt: skip
    assert apart.max() <= 1 and (apart > 0).mean() <= 0.01


def test_codebook_of_simvq_is_the_projected_one() -> None:
    peer = load_peer("simvq", GOLDEN / "simvq")
    network: Any = peer.network  # type: ignore[attr-defined]
    assert error(network.quantize.table_ed, golden("simvq", "outputs")["codebook"]) < 1e-5
    assert error(network.quantize.embedding.weight, golden("simvq", "outputs")["codebook"]) > 0.1


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("qlip", 64 * 28 / 64**2), ("unitok", 16 * 4 * 6 / 64**2), ("simvq", 256 * 9 / 64**2)],
)
def test_bits_a_pixel_and_licences(kind: str, bits: float) -> None:
    peer = load_peer(kind, GOLDEN / kind)
    assert math.isclose(peer.bits_per_pixel, bits)
    assert peer.name == f"{kind}:{GOLDEN / kind}"
    licences = {"qlip": "non-commercial", "unitok": "MIT", "simvq": "unknown"}
    assert licences[kind] in peer.licence


def test_networks_are_frozen_and_do_not_heed_autocast(
    peer: SquarePeer, images: list[np.ndarray]
) -> None:
    network: Any = peer.network
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())
    plain = peer.features(images[:1])[0]
    with torch.autocast("cpu"):
        np.testing.assert_array_equal(peer.features(images[:1])[0], plain)


# Pictures of any size, codes of any origin


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (64, 65), (65, 64), (63, 64)])
def test_odd_sizes(peer: SquarePeer, size: tuple[int, int]) -> None:
    picture = tiny.picture(3, *size)
    prepared = peer.prepare(picture)
    assert prepared.size == (64, 64) and prepared.mode == "RGB"
    [codes] = peer.encode([picture])
    assert peer.decode([codes])[0].size == prepared.size


def test_crops_lie_where_official_code_puts_them() -> None:
    """67 px wide after resizing: 1.5 px left over at each side."""
    ramp = np.tile(np.arange(67, dtype=np.uint8)[None, :, None], (64, 1, 3))
    first = {kind: np.asarray(load_peer(kind, GOLDEN / kind).prepare(ramp))[0, 0, 0]
             for kind in ("qlip", "simvq")}  # fmt: skip
    assert first == {"qlip": 1, "simvq": 2}


def test_pictures_do_not_depend_on_each_other(peer: SquarePeer, images: list[np.ndarray]) -> None:
    together, alone = peer.features(images), [peer.features([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pictures_that_cannot_be_read(peer: SquarePeer, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"x\.png"):
        peer.encode([tmp_path / "x.png"])
    with pytest.raises(ImageError, match="crop it first"):
        peer.prepare(Image.new("RGB", (1, 10**7)))
    assert peer.encode([]) == peer.decode([]) == peer.features([]) == []


def test_codes_that_are_none(peer: SquarePeer, images: list[np.ndarray]) -> None:
    [codes] = peer.encode(images[:1])
    high, low = codes.copy(), codes.copy()
    high.flat[0], low.flat[0] = peer.network.code_count, -1
    for bad in (codes[:-1], codes.astype(float), codes[None], high, low, np.zeros(0, int)):
        with pytest.raises(CodesError, match=re.escape(peer.name)):
            peer.decode([bad])


# Other forms of the same files


def test_a_file_instead_of_its_folder(kind: str, images: list[np.ndarray]) -> None:
    peer = load_peer(kind, str(GOLDEN / kind / WEIGHTS[kind]))
    codes = peer.encode(images)
    np.testing.assert_array_equal(np.stack(codes), golden(kind, "outputs")[CODES[kind]].numpy())


def test_qlip_in_a_pickle_and_in_shards(tmp_path: Path, images: list[np.ndarray]) -> None:
    weights = golden("qlip", "model")
    wanted = golden("qlip", "outputs")["indices_exact"][0].numpy()
    image = golden("qlip", "inputs")["image.0"].numpy()
    pickled, shards = copy("qlip", tmp_path / "pickle"), copy("qlip", tmp_path / "shards")
    for folder in (pickled, shards):
        (folder / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    places = {name: f"{len(name) % 2}.safetensors" for name in weights}
    for shard in set(places.values()):
        save_file({n: t for n, t in weights.items() if places[n] == shard}, shards / shard)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for folder in (pickled, shards):
        np.testing.assert_array_equal(load_peer("qlip", folder).encode([image])[0], wanted)


def test_bare_weights_of_simvq_need_no_averages(tmp_path: Path) -> None:
    state = torch.load(GOLDEN / "simvq" / WEIGHTS["simvq"], weights_only=True)["state_dict"]
    raw = {
        n: t.clone()
        for n, t in state.items()
        if n.startswith(("encoder.", "decoder.", "quantize."))
    }
    right = {n: state.get("model_ema." + n.replace(".", ""), t).clone() for n, t in raw.items()}
    image, wanted = golden("simvq", "inputs")["image.1"].numpy(), golden("simvq", "outputs")
    shutil.copy(GOLDEN / "simvq" / "config.json", tmp_path)
    for weights, same in ((right, True), (raw, False)):
        save_file(weights, tmp_path / "model.safetensors")
        [codes] = load_peer("simvq", tmp_path).encode([image])
        assert np.array_equal(codes, wanted["indices"][1].numpy()) is same


@pytest.mark.parametrize(("averaged", "same"), [("true", True), ("false", False)])
@pytest.mark.parametrize("place", ["config.yaml", "size128/config.yaml"])
def test_published_config_of_simvq(place: str, averaged: str, same: bool, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "simvq" / WEIGHTS["simvq"], tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(
        f"model:\n  init_args:\n    use_ema: {averaged}\n    ddconfig: {{resolution: 64}}\n"
    )
    peer = load_peer("simvq", tmp_path)
    [codes] = peer.encode([golden("simvq", "inputs")["image.2"].numpy()])
    assert np.array_equal(codes, golden("simvq", "outputs")["indices"][2].numpy()) is same


def test_bare_weights_of_unitok_beside_their_arguments(tmp_path: Path) -> None:
    content = torch.load(GOLDEN / "unitok" / WEIGHTS["unitok"], weights_only=True)
    arguments = {name: value for name, value in content["args"].items() if name != "dtype"}
    save_file(content["trainer"]["unitok"], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    [codes] = load_peer("unitok", tmp_path).encode([golden("unitok", "inputs")["image.0"].numpy()])
    np.testing.assert_array_equal(codes, golden("unitok", "outputs")["indices"][0].numpy())


# Ours


def test_viq_as_a_peer() -> None:
    peer = load_peer("viq", "viq-tiny")
    assert (peer.name, peer.licence, peer.bits_per_pixel) == ("viq-tiny", "Apache-2.0", 0.25)
    for size, grid in (((50, 83), (3, 5)), ((5, 300), (1, 18)), ((32, 32), (2, 2))):
        picture = tiny.picture(1, *size)
        prepared = peer.prepare(picture)
        assert prepared.size == (grid[1] * 16, grid[0] * 16)
        [codes], [features] = peer.encode([picture]), peer.features([picture])
        assert codes.shape == (*grid, 4) and codes.dtype == np.uint16
        assert features.shape == (grid[0] * grid[1], 192) and features.dtype == np.float32
        [decoded] = peer.decode([codes])
        assert decoded.size == prepared.size
        np.testing.assert_array_equal(peer.encode([prepared])[0], codes)
    for bad in (np.full((1, 1, 4), 64000), np.zeros((1, 4), int), np.zeros((1, 1, 4))):
        with pytest.raises(CodesError, match="viq-tiny"):
            peer.decode([bad])


def test_viq_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder|config.json"):
        load_peer("viq", tmp_path / "none")
