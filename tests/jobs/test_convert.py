"""Official weights to model folders, and the VAE beside them.

The tiny golden weights stand in for the published ones.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_weights import GOLDEN, PREFIX, fixture, refused, written
from torch import Tensor

from viq.core.codes import Codes
from viq.core.levels import PRESETS
from viq.core.types import CODES_PER_PATCH
from viq.image import patches
from viq.jobs import official_names as official
from viq.jobs.convert import convert
from viq.models.tokenizer import qwen_vae
from viq.models.tokenizer.config import VAE_WEIGHTS_FILE
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights.checkpoint import read_weights


def training_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that official training gives, the reverse of what a conversion undoes."""
    renamed = {}
    for key, tensor in weights.items():
        key = key.replace("fusion_block.", "dualvq_head.").replace("vq_low.", "vq_low.fsq.")
        renamed[PREFIX + key.replace("vae", "movq")] = tensor
    return renamed


# Conversion


@pytest.mark.parametrize("name", ["model_viq_fsq_64k.pth", "tiny.bin", "tiny.safetensors"])
def test_converted_codes_are_golden(weights: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    # The fixtures were made without any rounding to bfloat16.
    path = written(tmp_path, weights, name)
    summary = convert(path, out, heads=4, rope_angle_dtype="float32")
    assert summary == {
        "name": "viq-64k",
        "fingerprint": summary["fingerprint"],
        "parameters": sum(t.numel() for k, t in weights.items() if "vae_head.vae." not in k),
        "levels": [8, 8, 8, 5, 5, 5],
        "width": 64,
        "depth": 2,
        "heads": 4,
        "parts": ["encoder", "quantizer", "pool_norm", "pool_head", "latent_head"],
        "vae": True,
        "skipped": {},
    }
    model = VisualTokenizer.from_pretrained(out)
    assert model.fingerprint == summary["fingerprint"] == model.compute_fingerprint()
    assert model.config.tile == 0
    convert(
        path, out, heads=4, overwrite=True
    )  # published weights need rounded angles: the default
    published = VisualTokenizer.from_pretrained(out)
    assert published.config.quantizer.rope_angle_dtype == "bfloat16"
    assert published.fingerprint != model.fingerprint
    inputs, expected = fixture("encoder_tiny", "inputs"), fixture("encoder_tiny", "outputs")
    batch = patches.pack([inputs[f"image.{i}"].squeeze(0) for i in range(6)])
    for i, ids in enumerate(model.ids(batch).split(patches.lengths_of(batch.grids_hw))):
        assert torch.equal(ids.flatten(), expected[f"list.indices.{i}"].flatten().long())


def test_legacy_files_and_half_precision(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model_viq_fsq_64k.pt"
    half = {key: tensor.bfloat16() for key, tensor in weights.items()}
    torch.save(half, path, _use_new_zipfile_serialization=False)
    summary = convert(path, tmp_path / "out", heads=4)
    # Stored as it was, loaded as fp32, and one model whichever way it is held.
    stored = read_weights(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = VisualTokenizer.from_pretrained(tmp_path / "out")
    assert model.compute_fingerprint() == summary["fingerprint"]


def test_vae_folder_has_every_tensor_and_its_config(
    weights: dict[str, Tensor], converted: Path
) -> None:
    expected = json.loads((GOLDEN / "drawer_tiny" / "config.json").read_text())["vae"]
    config = json.loads((converted / "vae" / "config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    stored = read_weights(converted / "vae" / VAE_WEIGHTS_FILE)
    official_vae = {k: t for k, t in weights.items() if k.startswith(official.VAE_PREFIX)}
    assert {official.VAE_PREFIX + key for key in stored} == official_vae.keys()
    assert all(torch.equal(t, official_vae[official.VAE_PREFIX + k]) for k, t in stored.items())


def test_vae_decodes_golden_pixels(converted: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers, the extra `vae`, is not installed")
    inputs, expected = fixture("drawer_tiny", "inputs"), fixture("drawer_tiny", "outputs")
    settings = json.loads((GOLDEN / "drawer_tiny" / "config.json").read_text())
    vae = qwen_vae.load_vae(converted / "vae")
    decoded = qwen_vae.decode_latents(vae, [expected[f"latent.{i}"][0] for i in range(3)])
    for i, pixels in enumerate(decoded):
        reference = expected[f"pixels.{i}"].reshape(pixels.shape)
        torch.testing.assert_close(pixels, reference, rtol=0, atol=1e-3)

    model = VisualTokenizer.from_pretrained(converted)
    assert model.latent_head is not None
    grid = tuple(settings["grid_sizes_hw"][0])
    features = model.features(inputs["indices.0"].reshape(-1, CODES_PER_PATCH))
    pixels = qwen_vae.decode_latents(vae, model.latent_head(features, [grid]))[0]
    assert pixels.shape == (3, 16 * grid[0], 16 * grid[1])
    torch.testing.assert_close(
        pixels, expected["pixels.0"].reshape(pixels.shape), rtol=0, atol=1e-3
    )


def test_decode_of_a_converted_model_goes_through_its_vae(converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers, the extra `vae`, is not installed")
    inputs, expected = fixture("drawer_tiny", "inputs"), fixture("drawer_tiny", "outputs")
    settings = json.loads((GOLDEN / "drawer_tiny" / "config.json").read_text())
    VisualTokenizer.from_pretrained(converted).save_pretrained(tmp_path / "copy")
    model = VisualTokenizer.from_pretrained(tmp_path / "copy")  # the VAE is saved along
    for i, (rows, cols) in enumerate(settings["grid_sizes_hw"]):
        ids = inputs[f"indices.{i}"].reshape(rows, cols, CODES_PER_PATCH).numpy()
        size = (16 * rows, 16 * cols)
        decoded = np.asarray(model.decode(Codes(ids.astype(np.uint16), size))[0], int)
        reference = expected[f"recon_u8.{i}"].numpy().astype(int)
        assert abs(decoded - reference).max() <= 1  # the official code truncates, ours rounds


def test_incomplete_vae_folder(weights: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers, the extra `vae`, is not installed")
    stored = read_weights(converted / "vae" / VAE_WEIGHTS_FILE)
    del stored["decoder.conv_out.bias"]
    config = json.loads((converted / "vae" / "config.json").read_text())
    qwen_vae.write_vae(tmp_path, stored, config)
    with refused("1 tensors do not fit the VAE", "decoder.conv_out.bias"):
        qwen_vae.load_vae(tmp_path)


def test_vae_without_diffusers(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with refused("pip install 'viq[vae]'"):
        qwen_vae.load_vae(converted / "vae")


def test_file_without_reconstruction(weights: dict[str, Tensor], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(written(tmp_path, weights), out, heads=4)
    bare = {key: tensor for key, tensor in weights.items() if not key.startswith("vae_")}
    summary = convert(written(tmp_path, bare), out, heads=4, overwrite=True)
    assert summary["vae"] is False and "latent_head" not in summary["parts"]
    assert not list((out / "vae").iterdir()), "the VAE of another model was left behind"
    assert VisualTokenizer.from_pretrained(out).latent_head is None


def test_training_file(weights: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
    tensors = training_names(weights) | {
        f"{PREFIX}movq_head.perceptual_loss.lin0.weight": torch.ones(1),
        f"{PREFIX}movq_head.vae_cpu.conv.weight": torch.ones(1),
        f"{PREFIX}dualvq_head.vq_high.proj.weight": torch.ones(1),
        f"{PREFIX}dualvq_head.global_step": torch.tensor(5),
        "base_model.model.model.mm_projector.weight": torch.ones(1),
    }
    path = written(tmp_path, tensors, "vision_tower.pth")
    with refused("no size"):  # nor levels: this name tells neither
        convert(written(tmp_path, _with_dims(tensors, 7), "seven.pth"), tmp_path / "out", heads=4)
    summary = convert(path, tmp_path / "out", size="64k", heads=4)
    assert sum(summary["skipped"].values()) == 5 and len(summary["skipped"]) == 5
    published = VisualTokenizer.from_pretrained(converted)
    assert summary["fingerprint"] == published.fingerprint and summary["vae"]
    # Without the wrapper's prefix too, and found in its folder.
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in training_names(weights).items()}
    (tmp_path / "run").mkdir()
    written(tmp_path / "run", bare, "vision_tower.pth")
    again = convert(tmp_path / "run", tmp_path / "again", heads=4)
    assert again["fingerprint"] == summary["fingerprint"]


def _with_dims(tensors: dict[str, Tensor], d: int) -> dict[str, Tensor]:
    key = next(key for key in tensors if key.endswith("project_in.weight"))
    return tensors | {key: torch.ones(d, 64)}


# Levels, heads, folders


@pytest.mark.parametrize(
    ("file", "d", "options", "words"),
    [
        ("tiny.pth", 5, {}, ("several sizes", "2k", "4k", "8k", "16k")),
        ("tiny.pth", 7, {}, ("no size",)),
        ("model_viq_fsq_64k.pth", 5, {}, ("file has 5", "have 6")),
        ("model_viq_fsq_128k.pth", 6, {}, ("size 128k", "levels")),
        ("model_viq_fsq_2k.pth", 5, {"size": "4k"}, ("name says 2k", "size 4k")),
        ("tiny.pth", 6, {"size": "16k"}, ("file has 6", "[8, 8, 8, 6, 5] have 5")),
        ("tiny.pth", 6, {"size": "3k"}, ("3k is unknown",)),
        ("tiny.pth", 6, {"levels": (8, 8)}, ("file has 6", "[8, 8] have 2")),
        ("tiny.pth", 6, {"levels": (1,) * 6}, ("at least 2",)),
        ("tiny.pth", 6, {"size": "64k", "levels": (4,) * 6}, ("give one of the two",)),
        ("tiny.pth", 6, {"heads": None}, ("width 64", "give heads")),
        ("tiny.pth", 6, {"heads": 5}, ("64 cannot be split into 5",)),
        ("tiny.pth", 6, {"heads": 0}, ("64 cannot be split into 0",)),
    ],
)
def test_unclear_levels_and_heads(
    weights: dict[str, Tensor],
    tmp_path: Path,
    file: str,
    d: int,
    options: dict[str, Any],
    words: tuple[str, ...],
) -> None:
    path = written(tmp_path, _with_dims(weights, d), file)
    with refused(*words):
        convert(path, tmp_path / "out", **{"heads": 4, **options})
    assert not (tmp_path / "out").exists()


def test_own_levels_and_name(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = written(tmp_path, weights, "tiny.pth")
    summary = convert(path, tmp_path / "out", levels=[4] * 6, heads=4, name="mine")
    assert summary["levels"] == [4] * 6 and summary["name"] == "mine"
    assert VisualTokenizer.from_pretrained(tmp_path / "out").levels == (4,) * 6
    # A misnamed file: levels decide, and the name of the model follows them.
    path = written(tmp_path, weights, "model_viq_fsq_2k.pth")
    assert convert(path, tmp_path / "2", levels=PRESETS["64k"], heads=4)["name"] == "viq-64k"


def test_source_folder(weights: dict[str, Tensor], tmp_path: Path) -> None:
    source = tmp_path / "weights"
    (source / "ViQ" / "converted_64k").mkdir(parents=True)
    with refused("no model_viq_fsq_<size>.pth"):
        convert(source, tmp_path / "out")
    written(source / "ViQ" / "converted_64k", {"x": torch.ones(1)}, "embedder.pth")
    with refused("no model_viq_fsq_<size>.pth", "embedder.pth"):
        convert(source, tmp_path / "out")
    written(source / "ViQ" / "converted_64k", weights)
    assert convert(source, tmp_path / "out", heads=4)["name"] == "viq-64k"
    written(source, weights, "model_viq_fsq_2k.pth")
    with refused("several tokenizers", "model_viq_fsq_64k.pth", "model_viq_fsq_2k.pth"):
        convert(source, tmp_path / "out", heads=4, overwrite=True)
    with refused("missing.pth: no such file"):
        convert(source / "missing.pth", tmp_path / "out")
    (source / "notes.txt").write_text("x")
    with refused("notes.txt", ".safetensors"):
        convert(source / "notes.txt", tmp_path / "elsewhere")


def test_output_folder(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = written(tmp_path, weights)
    with refused("is a file"):
        convert(path, path, heads=4, overwrite=True)
    with refused("not empty"):
        convert(path, tmp_path, heads=4)
    assert sorted(os.listdir(tmp_path)) == [path.name]
    convert(path, tmp_path, heads=4, overwrite=True)
    assert VisualTokenizer.from_pretrained(tmp_path).width == 64
