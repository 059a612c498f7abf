"""Official weights to model folders, the VAE beside them, and the hub; no network.

The tiny golden weights stand in for the published ones; the real names and shapes are checked
on the meta device.
"""

import json
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from torch import Tensor

from viq.core.codes import Codes
from viq.core.levels import PRESETS
from viq.core.types import CODES_PER_PATCH
from viq.image import patches
from viq.jobs import convert as converting
from viq.jobs import official_names as official
from viq.jobs.convert import convert
from viq.models.tokenizer import qwen_vae
from viq.models.tokenizer.config import VAE_WEIGHTS_FILE
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights import hub
from viq.weights.checkpoint import CheckpointError, read_weights

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "base_model.model.model.vision_tower.vision_tower."


def fixture(name: str, part: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / f"{part}.safetensors")


def refused(*words: str) -> Any:
    """Expects one line of error that has all these words in this order."""
    pattern = ".*".join(re.escape(word) for word in words)
    return pytest.raises(CheckpointError, match=f"^[^\n]*{pattern}[^\n]*$")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """What a published file holds, tiny."""
    drawer = fixture("drawer_tiny", "weights")
    vae = {key: tensor for key, tensor in drawer.items() if key.startswith("vae_")}
    return fixture("encoder_tiny", "weights") | vae


@pytest.fixture(scope="module")
def converted(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    torch.save(weights, folder / "model_viq_fsq_64k.pth")
    convert(folder / "model_viq_fsq_64k.pth", folder / "out", heads=4)
    return folder / "out"


def written(folder: Path, tensors: Any, name: str = "model_viq_fsq_64k.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


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


# The hub


def _failing(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def _http(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)  # their constructors differ between versions of the library
    Exception.__init__(error, "two\nlines")
    return error


@pytest.mark.parametrize("name", ["viq-tniy", "./missing", "../a/b", "/a/b", "a/b/c", "", "a/"])
def test_names_that_are_no_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _failing(AssertionError()))
    with refused("there is no such folder", "owner/name"):
        hub.download(name)


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (errors.LocalEntryNotFoundError("x"), {}, ("not in the local cache", "network")),
        (
            errors.LocalEntryNotFoundError("x"),
            {"local_files_only": True},
            ("not in the local cache", "local_files_only"),
        ),
        (_http(errors.RepositoryNotFoundError), {}, ("not found on the hub", "private", "token")),
        (_http(errors.GatedRepoError), {}, ("gated", "https://huggingface.co/me/viq", "token")),
        (_http(errors.RevisionNotFoundError), {"revision": "v9"}, ("revision v9",)),
        (ConnectionError("reset\nby peer"), {}, ("not accessible", "ConnectionError: reset")),
    ],
)
def test_failed_downloads(
    error: Exception,
    options: dict[str, Any],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _failing(error))
    with refused("me/viq: there is no such folder", *words):
        hub.download("me/viq", **options)


def test_from_pretrained_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for only in (False, True):
        with refused("me/viq", "not in the local cache"):
            VisualTokenizer.from_pretrained("me/viq", cache_dir=tmp_path, local_files_only=only)


def test_download(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def fake(repo_id: str, **kwargs: Any) -> str:
        calls.append((repo_id, kwargs))
        return str(converted if repo_id == "me/viq" else tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    model = VisualTokenizer.from_pretrained("me/viq", revision="v1", token="t")
    assert model.width == 64
    (repo_id, kwargs) = calls[0]
    assert repo_id == "me/viq" and kwargs["revision"] == "v1" and kwargs["token"] == "t"
    assert "*.safetensors" in kwargs["allow_patterns"] and "vae/*" in kwargs["allow_patterns"]
    with refused("me/other", "no config.json", "viq convert"):
        hub.download("me/other")


def test_upload(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **kwargs: Any) -> SimpleNamespace:
            calls.append(("create", repo_id, kwargs))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: str, **kwargs: Any) -> Any:
            again = VisualTokenizer.from_pretrained(folder_path)
            calls.append(("upload", repo_id, again.fingerprint, kwargs))
            return SimpleNamespace(commit_url="https://huggingface.co/me/viq/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    model = VisualTokenizer.from_pretrained(converted)
    address = model.push_to_hub("viq", private=True, token="t", commit_message="first")
    assert address == "https://huggingface.co/me/viq/commit/1"
    assert calls == [
        ("token", "t"),
        ("create", "viq", {"private": True, "exist_ok": True}),
        ("upload", "me/viq", model.fingerprint, {"commit_message": "first"}),
    ]
    with pytest.raises(TypeError):
        monkeypatch.setattr(FakeApi, "upload_folder", _failing(TypeError("no such argument")))
        model.push_to_hub("viq", nonsense=1)
    monkeypatch.setattr(FakeApi, "create_repo", _failing(_http(errors.RepositoryNotFoundError)))
    with refused("viq: not uploaded", "token"):
        model.push_to_hub("viq")
