"""Files of other tokenizers that are damaged, foreign or hostile: one line says what and where."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_peers import GOLDEN, WEIGHTS, WITH_CODES, copy, golden, refused
from safetensors.torch import load_file, save_file

from viq.core.errors import ViqError
from viq.eval.peers import load_peer


@pytest.fixture(scope="module", params=WITH_CODES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="no peer is called 'vqgan': choose from viq, qlip"):
        load_peer("vqgan", tmp_path)


def test_missing_files(kind: str, tmp_path: Path) -> None:
    refused(kind, tmp_path, "no weights in this folder")
    refused(kind, tmp_path / "none", "no such file or folder")
    folder = copy(kind, tmp_path / "cut")
    path = folder / WEIGHTS[kind]
    os.truncate(path, path.stat().st_size // 2)
    refused(kind, folder, "not a whole")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_qlip_without_its_configs(name: str, tmp_path: Path) -> None:
    folder = copy("qlip", tmp_path)
    (folder / name).unlink()
    refused("qlip", folder, f"{name}: missing")
    (folder / name).write_text("{")
    refused("qlip", folder, "JSON")


def test_foreign_files(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pth")
    torch.save({"state_dict": {"a": torch.zeros(3)}}, tmp_path / "x.ckpt")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    refused("unitok", tmp_path / "x.pth", "no dictionary 'args'")
    refused("simvq", tmp_path / "x.ckpt", "no weight encoder.conv_in.weight")
    refused("simvq", tmp_path / "x.pth", "no SimVQ tokenizer")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(GOLDEN / "qlip" / name, tmp_path)
    refused("qlip", tmp_path, "missing in the file: vision_decoder")
    shutil.copy(tmp_path / "x.ckpt", tmp_path / "y.ckpt")
    refused("simvq", tmp_path, "several files")


def rewritten(kind: str, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the golden weights of a peer with an edit of its state dict."""
    path = copy(kind, folder) / WEIGHTS[kind]
    if kind == "qlip":
        weights = load_file(path)
        edit(weights)
        save_file(weights, path)
        return folder
    content = torch.load(path, weights_only=True)
    edit(content["trainer"]["unitok"] if kind == "unitok" else content["state_dict"])
    torch.save(content, path)
    return folder


MISSING = {
    "qlip": "vision_model.encoder.layers.1.mlp.w3.bias",
    "unitok": "decoder.blocks.1.norm1.weight",
    "simvq": "model_ema.decoderup0block0norm2weight",
}


def test_a_weight_that_is_missing_of_another_shape_or_of_another_kind(
    kind: str, tmp_path: Path
) -> None:
    name = MISSING[kind]
    refused(kind, rewritten(kind, tmp_path / "a", lambda w: w.pop(name)), f"missing.*{name}")
    shape = rewritten(kind, tmp_path / "b", lambda w: w.update({name: torch.zeros(5, 5)}))
    refused(kind, shape, "of another shape")
    whole = torch.zeros(64, dtype=torch.int32)
    refused(kind, rewritten(kind, tmp_path / "c", lambda w: w.update({name: whole})), "real number")


def test_a_last_block_that_is_missing_whole(tmp_path: Path) -> None:
    def cut(weights: dict[str, Any]) -> None:
        for name in [name for name in weights if name.startswith("encoder.blocks.1.")]:
            del weights[name]

    refused("unitok", rewritten("unitok", tmp_path, cut), r"unknown to the model: decoder.blocks.1")


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    for kind in ("unitok", "simvq"):
        path = tmp_path / f"{kind}.ckpt"
        torch.save({"state_dict": {}, "args": {}, "hidden": Harmful()}, path)
        refused(kind, path, "could run code")
    assert not (tmp_path / "made").exists()


QLIP_EDITS: dict[str, tuple[str, Any, str]] = {
    "wide": ("hidden_size", 10**9, "hidden_size"),
    "wider than the file": ("hidden_size", 128, "of another shape"),
    "deep": ("num_hidden_layers", 10**9, "num_hidden_layers"),
    "deeper than the file": ("num_hidden_layers", 5, "missing in the file"),
    "tall": ("image_size", 10**9, "image_size"),
    "patches": ("patch_size", 7, "no multiple"),
    "no number": ("hidden_size", "64", "hidden_size"),
    "heads": ("num_attention_heads", 7, "heads"),
    "heads for rope": ("num_attention_heads", 32, "multiple of 4"),
    "no heads": ("num_attention_heads", 0, "num_attention_heads"),
    "eps": ("layer_norm_eps", -1.0, "layer_norm_eps"),
    "activation": ("hidden_act", "relu6", "hidden_act"),
    "quantizer": ("quantizer", "fsq", "quantizer"),
    "bits": ("quantizer_cfg", {"embed_dim": 10**6}, "embed_dim"),
    "no bits": ("quantizer_cfg", {}, "embed_dim"),
    "identity": ("quantizer_embed_type", "identity", "need an embedding"),
    "features": ("hidden_size_post_q", 32, "of the decoder"),
    "switch": ("rope", "yes", "rope"),
}


@pytest.mark.parametrize("case", QLIP_EDITS)
def test_hostile_configs_of_qlip(case: str, tmp_path: Path) -> None:
    field, value, words = QLIP_EDITS[case]
    path = copy("qlip", tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"][field] = value
    path.write_text(json.dumps(config))
    refused("qlip", tmp_path, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": {"shortest_edge": 10**9}}, "shorter"),
        ({"size": {"shortest_edge": 32}}, "crop of 64 px"),
        ({"size": {"height": 64, "width": 64}}, "size"),
        ({"crop_size": {"height": 64, "width": 32}}, "crop_size"),
        ({"do_normalize": False}, "do_normalize is off"),
        ({"image_std": [0, 1, 1]}, "std"),
        ({"image_mean": None}, "three numbers"),
        ({"image_mean": [10**400, 0, 0]}, "too large"),
        ({"image_std": [float("nan"), 1, 1]}, "std"),
        ({"resample": 99}, "99"),
    ],
)
def test_hostile_preprocessors_of_qlip(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = copy("qlip", tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    refused("qlip", tmp_path, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"img_size": 10**9}, "img_size"),
        ({"img_size": 65}, "multiple of 16"),
        ({"num_codebooks": 3}, "split among 3"),
        ({"num_codebooks": 8}, "unknown to the model|missing"),
        ({"vocab_size": 2**20}, "of another shape"),
        ({"vocab_norm": False}, "vocab_norm"),
        ({"quant_proj": "conv"}, "quant_proj"),
        ({"quant_proj": "linear"}, "missing in the file: post_quant_proj.bias"),
        ({"resize_ratio": 0.5}, "crop of 64 px"),
        ({"model": "vitamin_large"}, "missing in the file"),
        ({"model": 3}, "model"),
    ],
)
def test_hostile_arguments_of_unitok(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = copy("unitok", tmp_path) / WEIGHTS["unitok"]
    content = torch.load(path, weights_only=True)
    content["args"].update(values)
    torch.save(content, path)
    refused("unitok", tmp_path, words)


def test_heads_of_a_unitok_of_other_widths(tmp_path: Path) -> None:
    """No shape tells them: a file beside the weights does, else the rule of the published."""
    image, wanted = golden("unitok", "inputs")["image.0"].numpy(), golden("unitok", "outputs")
    folder = copy("unitok", tmp_path)
    for heads, same in ((4, True), (None, True), (2, False)):
        (folder / "info.json").write_text(json.dumps({"widths": {"heads": heads}}))
        features = load_peer("unitok", folder).features([image])[0]
        assert np.allclose(features, wanted["features"][0].numpy(), atol=1e-4) is same
    (folder / "info.json").write_text(json.dumps({"widths": {"heads": 7}}))
    refused("unitok", folder, "7 heads")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "cannot be read"),
        ("- a", "no settings"),
        ("model: !!python/object/apply:os.getcwd []", "cannot be read"),
        ("model: {use_ema: 3}", "use_ema"),
        ("model: {size: 1000000}", "size"),
        ("model: {size: 63}", "multiple of 4"),
        ("model: {ddconfig: {resolution: big}}", "size"),
        ("[" * 50000, "cannot be read"),
    ],
)
def test_hostile_configs_of_simvq(text: str, words: str, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "simvq" / WEIGHTS["simvq"], tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    refused("simvq", tmp_path, words)
