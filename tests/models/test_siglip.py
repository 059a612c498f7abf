"""SigLIP weights in both namings: the numbers of transformers, and one line for what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.vision.siglip import (
    OFFICIAL_PREFIX,
    read_siglip,
    resample_patch_kernel,
    resample_position_grid,
    student_weights,
)
from viq.models.vision.tower import TowerConfig, VisionTower
from viq.weights.checkpoint import CheckpointError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def filled(model: Any) -> Any:
    """Every parameter at random: the stock start leaves biases at zero and norms at one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def siglip(**changes: Any) -> Any:
    config = transformers.SiglipVisionConfig(**{**SHAPE, "image_size": 64, **changes})
    return filled(transformers.SiglipVisionModel(config))


def naflex(**changes: Any) -> Any:
    config = transformers.Siglip2VisionConfig(**{**SHAPE, "num_patches": 16, **changes})
    return filled(transformers.Siglip2VisionModel(config))


def whole() -> Any:
    text = {**SHAPE, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.SiglipConfig(text_config=text, vision_config={**SHAPE, "image_size": 64})
    return filled(transformers.SiglipModel(config))


def timm_names(tower: VisionTower, prefix: str = "") -> dict[str, Tensor]:
    """The names and shapes that timm gives, the reverse of what is read."""
    renames = {
        "encoder.position": "pos_embed",
        "encoder.patch_embed": "patch_embed.proj",
        "encoder.blocks": "blocks",
        "pool_norm": "norm",
        "pool_head": "attn_pool",
    }
    named = {}
    for name, tensor in tower.state_dict().items():
        ours = next(ours for ours in renames if name.startswith(ours))
        named[prefix + renames[ours] + name.removeprefix(ours)] = tensor
    p, g = tower.config.encoder.patch_size, tower.config.encoder.position_grid
    kernel = prefix + "patch_embed.proj.weight"
    named[kernel] = named[kernel].unflatten(1, (3, p, p)).contiguous()
    named[prefix + "pos_embed"] = named[prefix + "pos_embed"].reshape(1, g * g, -1)
    return named


def own_tower(**changes: Any) -> VisionTower:
    shape = {"width": 32, "depth": 2, "heads": 4, "mlp_width": 48, "position_grid": 4, **changes}
    encoder = EncoderConfig(**shape)
    side = encoder.position_grid * encoder.patch_size
    return filled(VisionTower(TowerConfig(encoder=encoder, side=side, gelu="tanh")))


def assert_same(ours: VisionTower, images: Tensor, tokens: Tensor, pooled: Tensor) -> None:
    with torch.no_grad():
        assert (ours.tokens(images) - tokens).abs().max() < 1e-5
        assert (ours(images) - pooled).abs().max() < 1e-5


# Numbers


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_siglip_vision_model(images: Tensor, tmp_path: Path, act: str) -> None:
    model = siglip(hidden_act=act)
    model.save_pretrained(tmp_path)
    tower = VisionTower.from_pretrained(tmp_path)
    assert tower.config == TowerConfig(
        encoder=EncoderConfig(width=32, depth=2, heads=4, mlp_width=48, position_grid=4),
        side=64,
        gelu="exact" if act == "gelu" else "tanh",
        name=tmp_path.name,
    )
    with torch.no_grad():
        out = model(images)
    assert_same(tower, images, out.last_hidden_state, out.pooler_output)
    tower.save_pretrained(tmp_path / "own")
    assert torch.equal(VisionTower.from_pretrained(tmp_path / "own")(images), tower(images))


def test_naflex_vision_model(images: Tensor, tmp_path: Path) -> None:
    model = naflex()
    model.save_pretrained(tmp_path)
    # Its processor cuts patches row, column, channel.
    cut = images.unflatten(3, (4, 16)).unflatten(2, (4, 16)).permute(0, 2, 4, 3, 5, 1)
    with torch.no_grad():
        out = model(
            pixel_values=cut.reshape(2, 16, 768),
            pixel_attention_mask=torch.ones(2, 16, dtype=torch.long),
            spatial_shapes=torch.tensor([[4, 4], [4, 4]]),
        )
    tower = VisionTower.from_pretrained(tmp_path)
    assert_same(tower, images, out.last_hidden_state, out.pooler_output)


def test_whole_model_in_shards(images: Tensor, tmp_path: Path) -> None:
    model = whole()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        out = model.vision_model(images)
    tower = VisionTower.from_pretrained(tmp_path)
    assert_same(tower, images, out.last_hidden_state, out.pooler_output)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    tensors = load_file(shard)
    gone = tensors.popitem()[0]
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=f"1 tensors that no shard holds, such as {gone}"):
        read_siglip(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: missing"):
        read_siglip(tmp_path)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["visual.trunk.", OFFICIAL_PREFIX, ""])
def test_timm_names(images: Tensor, tmp_path: Path, name: str, prefix: str) -> None:
    tower = own_tower()
    tensors = timm_names(tower, prefix)
    if prefix:
        tensors["text.token_embedding.weight"] = torch.ones(3, 4)
    path = tmp_path / name
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    for source in (path, tmp_path):
        found = read_siglip(source, heads=4)
        assert found.encoder == tower.config.encoder
        # Towers of official ViQ training run with the exact function, SigLIP without it.
        assert found.gelu == ("exact" if prefix == OFFICIAL_PREFIX else "tanh")
        assert all(torch.equal(t, tower.state_dict()[k]) for k, t in found.weights.items())
    if prefix != OFFICIAL_PREFIX:
        assert torch.equal(VisionTower.from_pretrained(path, heads=4)(images), tower(images))


def test_published_widths_tell_heads(tmp_path: Path) -> None:
    tower = own_tower(width=768, depth=0, heads=12)
    path = tmp_path / "tower.safetensors"
    save_file({k: t.half() for k, t in timm_names(tower).items()}, path)
    loaded = VisionTower.from_pretrained(path)
    assert loaded.config.encoder.heads == 12 and loaded.config.name == "tower"
    assert loaded.pool_head.latent.dtype == torch.float32


# A student's start


def test_student_weights(tmp_path: Path) -> None:
    tower = own_tower(patch_size=14)
    path = tmp_path / "tower.safetensors"
    tensors = timm_names(tower)
    save_file(tensors, path)
    started = student_weights(path, 10)
    expected = tower.state_dict()
    assert started.keys() == expected.keys()
    kernel = resample_patch_kernel(tensors["patch_embed.proj.weight"], 16).flatten(1)
    position = resample_position_grid(tensors["pos_embed"], 10).reshape(10, 10, 32)
    assert torch.equal(started["encoder.patch_embed.weight"], kernel)
    assert torch.equal(started["encoder.position"], position)
    same = student_weights(path, 4, 14)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in same.items())


# Refusals


def refused(source: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_siglip(source)
    text = str(caught.value)
    assert "\n" not in text and str(source) in text
    assert all(word in text for word in words), text


def test_no_vision_tower(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file or folder", "model.safetensors")
    refused(tmp_path, "no weights in this folder", "model.safetensors")
    model = whole()
    save_file({f"text_model.{k}": v for k, v in model.text_model.state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    refused(tmp_path, "no SigLIP vision tower", "text_model", "give the whole model")
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path / "notes.txt", "ends in", ".safetensors")


def test_keys_and_shapes_that_do_not_fit(tmp_path: Path) -> None:
    siglip().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    prefix = "vision_model." if "vision_model.head.probe" in stored else ""

    def put(drop: str = "", **add: Tensor) -> None:
        kept = {k: v for k, v in stored.items() if k != prefix + drop}
        save_file(kept | {prefix + k.replace("__", "."): v for k, v in add.items()}, path)

    put(drop="encoder.layers.1.self_attn.k_proj.weight", extra__bias=torch.ones(3))
    refused(tmp_path, "1 missing in the file: encoder.blocks.1.attn.qkv.weight", "3 unknown",
            "extra.bias", "attn.q_proj.weight")  # fmt: skip
    put(drop="head.probe")
    refused(tmp_path, "1 missing in the file: pool_head.latent")
    put(drop="embeddings.position_embedding.weight")
    refused(tmp_path, "no position embedding")
    put(embeddings__position_embedding__weight=torch.ones(15, 32))
    refused(tmp_path, "15 places", "square")
    put(embeddings__patch_embedding__weight=torch.ones(32, 700))
    refused(tmp_path, "[32, 700]", "square RGB patches")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("layer_norm_eps", 1e-5, ("layer_norm_eps is 1e-05", "only 1e-6")),
        ("hidden_act", "relu", ("hidden_act is relu", "gelu_pytorch_tanh")),
        ("num_attention_heads", 5, ("cannot be split into 5 heads",)),
    ],
)
def test_configs_of_another_kind(
    tmp_path: Path, key: str, value: Any, words: tuple[str, ...]
) -> None:
    siglip().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(tmp_path, *words)


def test_sparse_configs_mean_the_defaults(tmp_path: Path) -> None:
    """Published configs leave out most fields."""
    siglip().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"vision_config": {"model_type": "siglip_vision_model"}}))
    with pytest.raises(CheckpointError, match="width 32 does not tell .* heads"):
        read_siglip(tmp_path)
    assert read_siglip(tmp_path, heads=4).gelu == "tanh"


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save({"visual.trunk.pos_embed": _Attack(tmp_path / "marker")}, path)
    with pytest.raises(CheckpointError, match=r"refused.*mkdir.*could run code"):
        read_siglip(tmp_path)
    assert not (tmp_path / "marker").exists()
    torch.save({"patch_embed.proj.weight": 3, "norm.bias": "x"}, path)
    with pytest.raises(CheckpointError, match=r"no tensors: norm\.bias, patch_embed"):
        read_siglip(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read_siglip(tmp_path)
