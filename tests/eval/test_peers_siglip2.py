"""SigLIP2 as a peer: towers of both kinds, as transformers computes them, and folders that do not
fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from golden_peers import refused

from viq.core.errors import ViqError
from viq.eval.peers import load_peer

transformers = pytest.importorskip("transformers")

SIZES = ((50, 80), (7, 300), (64, 64))
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "patch_size": 16}  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 50}  # fmt: skip
KINDS = ("siglip", "siglip_vision_model", "siglip2")


def build(kind: str) -> tuple[Any, Any]:
    """A model with new weights, and its image processor."""
    torch.manual_seed(0)
    square = {"height": 64, "width": 64}
    mean = [0.5, 0.5, 0.5]
    t: Any = transformers
    if kind == "siglip2":
        config = t.Siglip2Config(text_config=TEXT, vision_config=TOWER | {"num_patches": 16})
        return t.Siglip2Model(config), t.Siglip2ImageProcessorPil(max_num_patches=20)
    processor = t.SiglipImageProcessorPil(size=square, image_mean=mean, image_std=mean)
    if kind == "siglip":
        config = t.SiglipConfig(text_config=TEXT, vision_config=TOWER | {"image_size": 64})
        return t.SiglipModel(config), processor
    return t.SiglipVisionModel(t.SiglipVisionConfig(**TOWER, image_size=64)), processor


def saved(kind: str, folder: Path) -> tuple[Any, Any]:
    model, processor = build(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, processor = saved(kind, tmp_path)
    peer = load_peer("siglip2", tmp_path)
    assert peer.name == f"siglip2:{tmp_path}" and peer.licence == "Apache-2.0"
    assert peer.bits_per_pixel == 32 * 16 / 16**2
    for size in SIZES:
        picture = tiny.picture(1, *size)
        [features] = peer.features([picture])
        inputs = processor(images=picture, return_tensors="pt")
        with torch.no_grad():
            states = getattr(model, "vision_model", model)(**inputs).last_hidden_state[0]
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, states[: len(features)].numpy(), atol=1e-5)
        width, height = peer.prepare(picture).size
        assert len(features) == width * height // 16**2


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_that_a_tower_sees(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    peer = load_peer("siglip2", tmp_path)
    picture = tiny.picture(2, 64, 64)
    if kind != "siglip2":  # already of the size that it takes
        assert np.array_equal(np.asarray(peer.prepare(picture)), np.asarray(picture))
    flat = np.zeros((64, 64, 3), np.uint8)
    flat[:, 32:] = (255, 128, 3)
    seen = np.asarray(peer.prepare(flat))
    assert seen[-1, -1].tolist() == [255, 128, 3] and seen[-1, 0].tolist() == [0, 0, 0]


def test_it_has_no_codes(tmp_path: Path) -> None:
    saved("siglip", tmp_path)
    peer = load_peer("siglip2", tmp_path)
    for call in (lambda: peer.encode([]), lambda: peer.decode([])):
        with pytest.raises(ViqError, match="has no codes"):
            call()


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": {"height": 10**6, "width": 10**6}}, "not that of the model"),
        ({"size": {"shortest_edge": 64}}, "not that of the model"),
        ({"do_center_crop": True, "crop_size": 10**6}, "not that of the model"),
        ({"image_processor_type": "CLIPImageProcessor"}, "not that of the model"),
        ({"image_processor_type": "Nothing"}, "preprocessor"),
        ({"image_mean": [0.5]}, "not that of the model"),
    ],
)
def test_foreign_preprocessors(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    saved("siglip", tmp_path)
    edited(tmp_path / "preprocessor_config.json", **values)
    refused("siglip2", tmp_path, words)


@pytest.mark.parametrize("values", [{"max_num_patches": 10**9}, {"patch_size": 8}])
def test_foreign_preprocessors_of_any_aspect(values: dict[str, Any], tmp_path: Path) -> None:
    saved("siglip2", tmp_path)
    edited(tmp_path / "preprocessor_config.json", **values)
    refused("siglip2", tmp_path, "not that of the model")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    refused("siglip2", tmp_path / "none", "no such folder")
    saved("siglip", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    refused("siglip2", tmp_path, "preprocessor")
    edited(tmp_path / "config.json", model_type="llama")
    refused("siglip2", tmp_path, "model_type is 'llama'")
