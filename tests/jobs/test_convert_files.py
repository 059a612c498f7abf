"""Which files a conversion takes: other kinds, damaged ones, and every published name and shape.

The real names and shapes are checked on the meta device.
"""

import json
import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_weights import GOLDEN, PREFIX, fixture, refused, written
from torch import Tensor

from viq.core.levels import PRESETS
from viq.jobs import convert as converting
from viq.jobs import official_names as official
from viq.jobs.convert import convert
from viq.models.tokenizer import qwen_vae
from viq.weights.checkpoint import CheckpointError

# Other kinds of files, and damaged ones


def _stage1(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + k: t for k, t in weights.items() if "fusion" not in k and "vae" not in k}


def _siglip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"visual.trunk.{k.removeprefix(PREFIX)}": t for k, t in _stage1(weights).items()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_stage1, ("stage-1", "no quantizer", "model_viq_fsq_<size>.pth")),
        (_siglip, ("SigLIP2", "no quantizer", "model_viq_fsq_<size>.pth")),
        (lambda _: fixture("embedder_tiny", "weights"), ("embedder.pth", "holds everything")),
        (lambda _: fixture("drawer_tiny", "weights"), ("index_drawer.pth", "holds everything")),
        (official.convert_weights, ("already a viq model",)),
        (lambda _: {"x": torch.ones(1)}, ("not an official ViQ tokenizer", "x")),
        (lambda _: [torch.ones(1)], ("list, not a dictionary",)),
        (lambda w: {**w, "fusion_block.note": 3}, ("not floating-point", "fusion_block.note")),
        (lambda w: {**w, "norm.bias": torch.ones(64).int()}, ("not floating-point", "norm.bias")),
    ],
)
def test_other_files(
    weights: dict[str, Tensor],
    tmp_path: Path,
    make: Callable[[dict[str, Tensor]], Any],
    words: tuple[str, ...],
) -> None:
    with refused(*words):
        convert(written(tmp_path, make(weights)), tmp_path / "out", heads=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("drop", "add", "words"),
    [
        ("pos_embed", {}, ("no pos_embed",)),
        ("norm.bias", {}, ("1 missing", "pool_norm.bias")),
        ("none", {"blocks.0.ls1.gamma": 1}, ("1 unknown", "encoder.blocks.0.ls1.gamma")),
        ("none", {"fusion_block.extra": 1}, ("1 unknown", "fusion_block.extra")),
        ("none", {"norm.bias": 3}, ("of another shape", "file [3], model [64]")),
        ("norm.bias", {"norm.b": 64}, ("1 missing", "pool_norm.bias", "pool_norm.b")),
        ("none", {"_weight": 64}, ("one place in the model", "_weight")),
        ("none", {"patch_embed.proj.weight": 3}, ("patch_embed.proj.weight", "[3]", "4 dim")),
        ("vae_head.conv_out.bias", {}, ("no vae_head.conv_out.bias",)),
        ("vae_head.vae.quant_conv.bias", {}, ("quant_conv.bias (file none, model [32])",)),
        ("none", {"vae_head.vae.extra": 3}, ("extra (file [3], model none)",)),
        ("vae_head.vae.encoder.conv_in.bias", {}, ("no encoder.conv_in.bias",)),
    ],
)
def test_tensors_that_do_not_fit(
    weights: dict[str, Tensor],
    tmp_path: Path,
    drop: str,
    add: dict[str, int],
    words: tuple[str, ...],
) -> None:
    tensors = {key: tensor for key, tensor in weights.items() if key != drop}
    tensors |= {key: torch.ones(length) for key, length in add.items()}
    with refused(*words):
        convert(written(tmp_path, tensors), tmp_path / "out", heads=4)
    assert not (tmp_path / "out").exists()


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = written(tmp_path, {"pos_embed": _Attack(marker)})
    with refused("refused", "mkdir", "could run code"):
        convert(path, tmp_path / "out")
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"pos_embed": _Attack(marker)}, protocol=protocol))
        with pytest.raises(CheckpointError):
            convert(path, tmp_path / "out")
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the attack of this test must be a real one"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = written(tmp_path, weights)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(content)
        with refused("not a whole file of torch.save"):
            convert(path, tmp_path / "out")
    path = tmp_path / "model_viq_fsq_64k.safetensors"
    path.write_bytes(whole)
    with refused("not a whole safetensors file"):
        convert(path, tmp_path / "out")


# The published files: every name and shape


def _official_shapes(file: str, **symbols: int) -> dict[str, tuple[int, ...]]:
    """`checkpoint_keys.json` spelled out: '#' numbered, symbols replaced."""
    entry = json.loads((GOLDEN / "checkpoint_keys.json").read_text())["files"][file]
    shapes = {}
    for key in entry["keys"]:
        index = key.get("index", [""])
        if isinstance(index, str):
            first, last = index.split("..")
            index = [str(i) for i in range(int(first), int(last) + 1)]
        for numbers in index:
            name = key["key"]
            for number in numbers.split(".") if numbers else []:
                name = name.replace("#", number, 1)
            shapes[name] = tuple(_value(side, symbols) for side in key["shape"])
    assert len(shapes) == entry["n_keys"] and not any("#" in name for name in shapes)
    return shapes


def _value(side: int | str, symbols: dict[str, int]) -> int:
    factors = re.findall(r"\d+|[A-Za-z]", str(side))
    return math.prod(symbols[f] if f in symbols else int(f) for f in factors)


@pytest.mark.parametrize("size", PRESETS)
def test_published_names_and_shapes(size: str) -> None:
    levels = PRESETS[size]
    shapes = _official_shapes("model_viq_fsq_<size>.pth", W=1536, M=256, G=128, d=len(levels))
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    path = Path(f"model_viq_fsq_{size}.pth")
    weights, skipped = converting.tokenizer_weights(published, str(path))
    assert not skipped
    vae = {
        key.removeprefix(official.VAE_PREFIX): tuple(weights.pop(key).shape)
        for key in published
        if key.startswith(official.VAE_PREFIX)
    }
    config = converting.tokenizer_config(weights, path, has_vae=True)
    encoder, quantizer = config.encoder, config.quantizer
    assert (encoder.width, encoder.depth, encoder.heads) == (1536, 40, 16)
    assert (encoder.mlp_width, encoder.position_grid, encoder.patch_size) == (6144, 128, 16)
    assert (quantizer.levels, quantizer.slot_attention_width) == (levels, 256)
    assert config.latents is not None and config.latents.channels == 16
    model = converting.build(config, weights, str(path))
    assert len(model.state_dict()) == len(weights)
    assert all(parameter.is_meta for parameter in model.parameters())
    config = qwen_vae.infer_config(vae, str(path))
    # The stock VAE, which is also what diffusers builds without arguments.
    assert (config["base_dim"], config["z_dim"], config["num_res_blocks"]) == (96, 16, 2)
    assert config["dim_mult"] == [1, 2, 4, 4]
    assert config["temperal_downsample"] == [False, True, True]
    assert len(vae) + len(weights) == 862


@pytest.mark.parametrize("file", ["embedder.pth", "index_drawer.pth"])
def test_published_decoders_are_parts_of_the_tokenizer(file: str) -> None:
    shapes = _official_shapes(file, W=1536, K=64000, d=6)
    whole = _official_shapes("model_viq_fsq_<size>.pth", W=1536, M=256, G=128, d=6)
    ours = {official.rename(key): shape for key, shape in whole.items() if official.rename(key)}
    for key, shape in shapes.items():
        if not key.startswith(("ori_codebook.", official.VAE_PREFIX)):
            assert ours[official.rename(key)] == shape


def test_vae_shapes_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers, the extra `vae`, is not installed"
    )
    for temporal in ([True, False], [False, True]):
        settings = {
            "base_dim": 6,
            "z_dim": 3,
            "dim_mult": [2, 1, 4],
            "num_res_blocks": 2,
            "temperal_downsample": temporal,
        }
        with torch.device("meta"):
            vae = diffusers.AutoencoderKLQwenImage(**settings)
        theirs = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
        assert qwen_vae.expected_shapes(settings) == theirs
        inferred = qwen_vae.infer_config(theirs, "diffusers")
        assert {key: inferred[key] for key in settings} == settings
