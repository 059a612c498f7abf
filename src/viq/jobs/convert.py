"""Official ViQ weights to a model folder: what `viq convert SRC -o DIR --size 64k` does.

Two kinds of files hold a whole tokenizer: the published `model_viq_fsq_<size>.pth`, and the
`vision_tower.pth` that official training writes, whose names differ. Shapes tell nearly all of
the config; only the FSQ levels and the number of heads must be known. Loading is strict: every
tensor of the file finds its place, or is skipped for a reason listed below.

A file of 7 GB is mapped into memory, not read, and never unpickled beyond plain tensors.

C = width, G = side of the position grid, M = slot attention width, d = FSQ dims.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from viq.core.levels import PRESETS, check_levels
from viq.core.outputs import require_free
from viq.jobs import official_names as official
from viq.models.tokenizer import qwen_vae
from viq.models.tokenizer.config import VAE_FOLDER, VAE_WEIGHTS_FILE
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.latent_head import LatentConfig
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.qwen_vae import list_length
from viq.models.tokenizer.tokenizer import TokenizerConfig, VisualTokenizer
from viq.models.vision.siglip import OFFICIAL_PREFIX
from viq.weights import checkpoint
from viq.weights.checkpoint import CheckpointError
from viq.weights.tensors import SUFFIXES, read_tensors

_OFFICIAL_NAME = re.compile(r"model_viq_fsq_(\w+)")
_HEADS = {1536: 16, 1152: 16}  # of the published widths, SigLIP2 g and so400m
_RENAMES = (("dualvq_head.", "fusion_block."), ("movq", "vae"), ("vq_low.fsq.", "vq_low."))
# What a training file holds beside the tokenizer: pattern in the renamed key, and the reason.
_SKIPS = (
    (r"perceptual_loss", "the LPIPS network of a training loss"),
    (r"vae_cpu", "a second copy of the VAE"),
    (r"(^|\.)vq_high", "the high branch, an identity in the released recipe"),
    (r"(^|\.)global_step$", "a step counter"),
)
_OUTSIDE = "the language model's side, outside the vision tower"


def convert(
    source: Path,
    out: Path,
    *,
    size: str | None = None,
    levels: Sequence[int] | None = None,
    heads: int | None = None,
    name: str | None = None,
    rope_angle_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the model folder `out`, with the file's VAE in `out/vae` if it has one.

    Args:
        source: a .pth, .pt, .bin or .safetensors file, or a folder that holds exactly one.
        size: a preset of levels, "2k" to "64k"; by default what the file is named after.
        levels: FSQ levels, for weights of none of these sizes.
        heads: attention heads; needed only for a width that was never published.
        name: of the model; "viq-<size>" by default.
        rope_angle_dtype: published weights were trained and run with angles rounded to bfloat16;
            "float32" is for weights that were trained without.
        overwrite: replace the model in an `out` that is not empty; other files there stay.

    Returns:
        name, fingerprint, parameters, levels, width, depth, heads, parts (of the model), vae
        (whether one was written), skipped (reason: number of tensors).

    Raises:
        CheckpointError: the file is not a whole tokenizer, does not fit, or is not understood.
    """
    source, out = Path(source), Path(out)
    path = _find(source)
    _check_out(out, overwrite)
    had_vae = _holds_vae(out)
    weights, skipped = tokenizer_weights(read_tensors(path), str(path))
    vae = {k.removeprefix(official.VAE_PREFIX): weights.pop(k) for k in _vae_keys(weights)}
    config = tokenizer_config(
        weights, path, size=size, levels=levels, heads=heads, name=name, has_vae=bool(vae),
        rope_angle_dtype=rope_angle_dtype,
    )  # fmt: skip
    model = build(config, weights, str(path))
    vae_config = None
    if vae:
        shapes = {key: tuple(tensor.shape) for key, tensor in vae.items()}
        vae_config = qwen_vae.infer_config(shapes, str(path))
        channels = config.latents.channels if config.latents else 0
        if vae_config["z_dim"] != channels:
            raise CheckpointError(
                f"{path}: the VAE has {vae_config['z_dim']} latent channels, the head that feeds "
                f"it has {channels}"
            )
    # Last of all the model's config.json, without which a folder is none.
    vae_folder = out / VAE_FOLDER
    if vae_config:
        qwen_vae.write_vae(vae_folder, vae, vae_config)
    elif had_vae:  # it belongs to the model of ours that is replaced, as its config said
        for stale in (checkpoint.CONFIG_FILE, VAE_WEIGHTS_FILE):
            (vae_folder / stale).unlink(missing_ok=True)  # see above; --overwrite was given
    model.save_pretrained(out)
    return {
        "name": config.name,
        "fingerprint": model.fingerprint,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "levels": list(config.quantizer.levels),
        "width": config.encoder.width,
        "depth": config.encoder.depth,
        "heads": config.encoder.heads,
        "parts": [part for part, _ in model.named_children()],
        "vae": bool(vae_config),
        "skipped": skipped,
    }


def tokenizer_weights(
    tensors: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tokenizer's tensors under their official inference names, and what was skipped.

    Raises:
        CheckpointError: a file of another kind, two tensors of one name, or not only tensors.
    """
    refusal = _refusal(tensors)
    if refusal:
        raise CheckpointError(f"{source}: {refusal}")
    training = any("dualvq_head." in key for key in tensors)
    prefixed = training and any(key.startswith(OFFICIAL_PREFIX) for key in tensors)
    weights: dict[str, Any] = {}
    skipped: Counter[str] = Counter()
    for key, tensor in tensors.items():
        if prefixed and not key.startswith(OFFICIAL_PREFIX):
            skipped[_OUTSIDE] += 1
            continue
        named = key
        if training:
            named = named.removeprefix(OFFICIAL_PREFIX)
            for old, new in _RENAMES:
                named = named.replace(old, new)
            reason = next((why for pattern, why in _SKIPS if re.search(pattern, named)), None)
            if reason:
                skipped[reason] += 1
                continue
        if named in weights:
            raise CheckpointError(f"{source}: two tensors are called {named}")
        weights[named] = tensor
    others = [key for key, value in weights.items() if not _is_float(value)]
    if others:
        raise CheckpointError(f"{source}: not floating-point tensors: {_listed(others)}")
    return weights, dict(skipped)


def tokenizer_config(
    weights: Mapping[str, Tensor],
    path: Path,
    *,
    size: str | None = None,
    levels: Sequence[int] | None = None,
    heads: int | None = None,
    name: str | None = None,
    has_vae: bool = False,
    rope_angle_dtype: Literal["float32", "bfloat16"] = "bfloat16",
) -> TokenizerConfig:
    """The config of official inference weights, read off shapes as far as they tell.

    Raises:
        CheckpointError: tensors that tell are missing, or levels or heads are unclear or wrong.
    """
    trunk, head, fsq = "blocks.", "fusion_block.", "fusion_block.vq_low."

    def dim(key: str, axis: int, rank: int) -> int:
        if key not in weights:
            raise CheckpointError(f"{path}: no {key}: not a whole tokenizer, which has one")
        if weights[key].ndim != rank:
            shape = list(weights[key].shape)
            raise CheckpointError(f"{path}: {key} has shape {shape}, {rank} dimensions expected")
        return weights[key].shape[axis]

    width = dim("pos_embed", 2, 3)
    places = dim("pos_embed", 1, 3)
    if math.isqrt(places) ** 2 != places:
        raise CheckpointError(f"{path}: pos_embed has {places} places, which make no square grid")
    preset, levels = _levels(path, dim(f"{fsq}project_in.weight", 0, 2), size, levels)
    heads = _heads(path, width, heads)
    encoder = EncoderConfig(
        width=width,
        depth=list_length(weights, trunk),
        heads=heads,
        mlp_width=dim(f"{trunk}0.mlp.fc1.bias", 0, 1),
        patch_size=dim("patch_embed.proj.weight", 3, 4),
        position_grid=math.isqrt(places),
    )
    quantizer = QuantizerConfig(
        levels=levels,
        heads=heads,
        pre_depth=list_length(weights, f"{head}vq_low_preprocess_layers."),
        slot_depth=list_length(weights, f"{fsq}fsq_pre_attn."),
        slot_attention_width=dim(f"{fsq}fsq_pre_attn.0.attn.qkv.weight", 1, 2),
        slot_mlp_ratio=_ratio(dim(f"{fsq}fsq_pre_attn.0.mlp.fc1.bias", 0, 1), width),
        post_depth=max(0, list_length(weights, f"{head}vq_low_postprocess_layers.") - 1),
        rope_angle_dtype=rope_angle_dtype,
    )
    latents = None
    if has_vae or any(key.startswith(("vae_preprocess_layers.", "vae_head.")) for key in weights):
        latents = LatentConfig(
            heads=heads,
            depth=max(0, list_length(weights, "vae_preprocess_layers.") - 2),
            channels=dim("vae_head.conv_out.bias", 0, 1) // 4,
            mlp_ratio=_ratio(dim("vae_preprocess_layers.2.mlp.fc1.bias", 0, 1), width),
        )
    name = name or (f"viq-{preset}" if preset else "viq")
    return TokenizerConfig(encoder=encoder, quantizer=quantizer, latents=latents, tile=0, name=name)


def build(config: TokenizerConfig, weights: Mapping[str, Tensor], source: str) -> VisualTokenizer:
    """The model of a config that holds official weights themselves, not copies; frozen.

    Raises:
        CheckpointError: weights do not fit; both sides are listed.
    """
    try:
        with torch.device("meta"):
            model = VisualTokenizer(config)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    ours = official.convert_weights(weights)
    unknown = {key: tensor for key, tensor in weights.items() if official.rename(key) is None}
    if len(ours) + len(unknown) < len(weights):
        by_name = Counter(official.rename(key) for key in weights)
        twice = [key for key in weights if key not in unknown and by_name[official.rename(key)] > 1]
        raise CheckpointError(f"{source}: tensors with one place in the model: {_listed(twice)}")
    checkpoint.load_strictly(model, ours | unknown, source)
    return model.requires_grad_(False).eval()


def _find(source: Path) -> Path:
    """The one file meant by a path: itself, or the only tokenizer file of a folder."""
    if not source.is_dir():
        if not source.is_file():
            raise CheckpointError(f"{source}: no such file or folder")
        if source.suffix not in SUFFIXES:
            raise CheckpointError(
                f"{source}: a weight file ends in {', '.join(SUFFIXES)}; give "
                "model_viq_fsq_<size>.pth"
            )
        return source
    # The published repository keeps its files two folders down.
    files = [p for pattern in ("*", "*/*", "*/*/*") for p in sorted(source.glob(pattern))]
    files = [p for p in files if p.suffix in SUFFIXES and p.is_file()]
    found = [p for p in files if _OFFICIAL_NAME.fullmatch(p.stem)]
    found = found or [p for p in files if p.stem == "vision_tower"]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{source}: several tokenizers, give one of them: {_listed(map(str, found), limit=12)}"
        )
    others = f"; it has {_listed(p.name for p in files)}" if files else ""
    raise CheckpointError(f"{source}: no model_viq_fsq_<size>.pth in this folder{others}")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; give a folder to write to")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise CheckpointError(f"{out}: not empty; give another folder, or --overwrite")
    require_free(out / checkpoint.CONFIG_FILE, out / checkpoint.WEIGHTS_FILE, overwrite=True)


def _holds_vae(out: Path) -> bool:
    """Whether a model of ours lies there, with a VAE of its own."""
    try:
        values = checkpoint.read_config(out)
    except CheckpointError:
        return False
    return "fingerprint" in values and bool(values.get("latents"))


def _refusal(keys: Iterable[str]) -> str | None:
    """Why a file of another kind cannot be converted; None for a tokenizer or the unknown."""
    keys = {key.removeprefix(OFFICIAL_PREFIX) for key in keys}
    whole = "give model_viq_fsq_<size>.pth"
    if any(key.startswith(("fusion_block.", "dualvq_head.")) for key in keys):
        return None
    if "ori_codebook.weight" in keys:
        if any(key.startswith("vae_preprocess_layers.") for key in keys):
            return f"index_drawer.pth alone cannot encode; {whole} instead, it holds everything"
        return f"embedder.pth alone cannot encode; {whole} instead, it holds everything"
    if any(key.startswith("visual.trunk.") for key in keys):
        return f"an original SigLIP2 file, which has no quantizer and so makes no codes; {whole}"
    if any(key.startswith("quantizer.") for key in keys):
        return "already a viq model; load its folder with from_pretrained"
    if "pos_embed" in keys and any(key.startswith("blocks.") for key in keys):
        return (
            "a stage-1 any-resolution tower (anyres_vit), which has no quantizer and so makes no "
            f"codes; {whole}"
        )
    return f"not an official ViQ tokenizer: it has {_listed(keys)}; {whole}"


def _levels(
    path: Path, d: int, size: str | None, levels: Sequence[int] | None
) -> tuple[str | None, tuple[int, ...]]:
    """Preset, if it is one, and levels; shapes tell only d, how many there are."""
    sizes = ", ".join(f"{preset} {list(values)}" for preset, values in PRESETS.items())
    match = _OFFICIAL_NAME.fullmatch(path.stem)
    called = match.group(1) if match else None
    if size is not None and size not in PRESETS:
        raise CheckpointError(f"size {size} is unknown; sizes are {sizes}; or give levels")
    if levels is not None:
        try:
            chosen = check_levels(levels)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        if size is not None and PRESETS[size] != chosen:
            raise CheckpointError(
                f"size {size} has levels {list(PRESETS[size])}, but levels {list(chosen)} are "
                "given: give one of the two"
            )
        size = next((preset for preset, values in PRESETS.items() if values == chosen), None)
    else:
        if size and called in PRESETS and called != size:
            # Equal d would let the wrong size pass, and every code would be wrong.
            raise CheckpointError(
                f"{path}: its name says {called}, but size {size} is given; if the name is wrong, "
                f"give levels {list(PRESETS[size])} instead"
            )
        fits = [preset for preset, values in PRESETS.items() if len(values) == d]
        size = size or called or (fits[0] if len(fits) == 1 else None)
        if size is None:
            candidates = ", ".join(f"{preset} {list(PRESETS[preset])}" for preset in fits)
            raise CheckpointError(
                f"{path}: {d} FSQ dimensions fit "
                + (f"several sizes, give one: {candidates}" if fits else "no size, give levels")
            )
        if size not in PRESETS:
            raise CheckpointError(
                f"{path}: named after the size {size}, which is unknown; sizes are {sizes}; or "
                "give levels"
            )
        chosen = PRESETS[size]
    if len(chosen) != d:
        raise CheckpointError(
            f"{path}: the file has {d} FSQ dimensions, levels {list(chosen)} have {len(chosen)}; "
            f"give the size or levels it was trained with"
        )
    return size, chosen


def _heads(path: Path, width: int, heads: int | None) -> int:
    heads = _HEADS.get(width) if heads is None else heads
    if heads is None:
        known = ", ".join(f"{w}: {h}" for w, h in _HEADS.items())
        raise CheckpointError(
            f"{path}: width {width} does not tell the number of attention heads (known are "
            f"{known}); give heads"
        )
    if heads < 1 or width % heads:
        raise CheckpointError(f"{path}: width {width} cannot be split into {heads} heads")
    return heads


def _ratio(hidden: int, width: int) -> float:
    # 4 rather than 4.0 where it is whole: the fingerprint covers the config as it is written.
    return hidden // width if hidden % width == 0 else hidden / width


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _vae_keys(weights: Iterable[str]) -> list[str]:
    return [key for key in weights if key.startswith(official.VAE_PREFIX)]


def _listed(names: Iterable[str], limit: int = 6) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
