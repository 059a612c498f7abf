"""The Qwen-Image VAE, which turns the latents of `LatentHead` into pixels.

Its config and the shapes of all its tensors are worked out here by hand, so that converting a
checkpoint needs no diffusers; only decoding does (`pip install "viq[vae]"`). The folder is in
diffusers' own format and any diffusers program can read it, and `load_vae` reads the stock one.

Z = latent channels, z_dim in diffusers' words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viq.core import files
from viq.core.errors import first_line, require
from viq.models.tokenizer.config import VAE_WEIGHTS_FILE
from viq.weights import checkpoint
from viq.weights.checkpoint import CheckpointError

Shape = tuple[int, ...]


def load_vae(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """The VAE in a folder (`MODEL/vae`), frozen: diffusers' `AutoencoderKLQwenImage`.

    Raises:
        CheckpointError: diffusers is missing or broken, or the folder incomplete or damaged.
    """
    what = f"{folder}: decoding with the Qwen-Image VAE"
    try:
        with require("diffusers", "vae", what, CheckpointError):
            from diffusers import (  # pyright: ignore[reportMissingImports]
                AutoencoderKLQwenImage,  # pyright: ignore[reportPrivateImportUsage]
            )
    except RuntimeError as error:  # diffusers wraps what its own imports raise
        raise CheckpointError(
            f"{folder}: diffusers is installed but broken ({first_line(error)}); a torchvision "
            "made for another torch does this: uninstall it"
        ) from error
    config, path = checkpoint.read_config(folder), folder / VAE_WEIGHTS_FILE
    # The file tells the shape, so a config that tells another is not even built.
    described = infer_config(checkpoint.shapes_in(path), str(path))
    wrong = [k for k, v in described.items() if k in config and k[0] != "_" and config[k] != v]
    if wrong:
        raise CheckpointError(f"{folder}: config and weights differ in {', '.join(wrong)}")
    # Not diffusers' from_pretrained: it fills missing tensors with noise and only warns.
    with checkpoint.building(str(folder / checkpoint.CONFIG_FILE)):
        vae: Any = AutoencoderKLQwenImage.from_config(config)
    checkpoint.load_model(vae, path, device=device, dtype=dtype)
    return vae.requires_grad_(False).eval()


def decode_latents(vae: Any, latents: Sequence[Tensor]) -> list[Tensor]:
    """Images [3, 8h, 8w] fp32 in [-1, 1] of raw latents [Z, h, w], one at a time.

    Raw: the official head predicts the VAE's posterior mean itself, so latents_mean and
    latents_std of the VAE's config are not applied. Gradients flow through.
    """
    images = []
    for latent_Zhw in latents:
        # A video model: batch, channels, frames, rows, columns. An image is one frame.
        one = latent_Zhw.to(vae.device, vae.dtype)[None, :, None]
        images.append(vae.decode(one).sample[0, :, 0].float())
    return images


@torch.no_grad()
def encode_latents(vae: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """Raw latents [Z, h/8, w/8] fp32 of images [3, h, w] in [-1, 1], sides multiples of 8.

    The mean of the posterior, without latents_mean and latents_std: what the official
    reconstruction loss is measured against.
    """
    latents = []
    for image_3hw in images:
        one = image_3hw.to(vae.device, vae.dtype)[None, :, None]
        latents.append(vae.encode(one).latent_dist.mean[0, :, 0].float())
    return latents


def write_vae(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a VAE folder in diffusers' format, weights first; tensors keep their dtype."""
    checkpoint.write_weights(folder / VAE_WEIGHTS_FILE, weights)
    text = json.dumps(config, indent=2) + "\n"
    files.write_atomically(folder / checkpoint.CONFIG_FILE, text.encode())


def list_length(keys: Iterable[str], prefix: str) -> int:
    """Length of the list of modules whose names start with `prefix` and a number."""
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in keys)
    return max((int(match.group(1)) + 1 for match in numbers if match), default=0)


def infer_config(shapes: Mapping[str, Shape], source: str) -> dict[str, Any]:
    """diffusers' config of a VAE with tensors of these shapes, every one accounted for.

    latents_mean and latents_std are left to diffusers' defaults: no shape tells them, and raw
    latents do not need them.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape; lists them.
    """
    stages = list_length(shapes, "decoder.up_blocks.")
    resnets = list_length(shapes, "decoder.up_blocks.0.resnets.")
    first = _first(shapes, "encoder.conv_in.bias", source)
    widths = [
        _first(shapes, f"decoder.up_blocks.{i}.resnets.0.conv1.bias", source)
        for i in reversed(range(stages))
    ]
    if not widths or resnets < 2 or any(width % first for width in widths):
        raise CheckpointError(
            f"{source}: not a Qwen-Image VAE: {resnets} blocks in each of {stages} decoder stages "
            f"of widths {widths}, encoder width {first}"
        )
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKLQwenImage",
        "base_dim": first,
        "z_dim": _first(shapes, "post_quant_conv.bias", source),
        "dim_mult": [width // first for width in widths],
        "num_res_blocks": resnets - 1,
        "attn_scales": [],
        # The decoder's stages run from coarse to fine, the encoder's list from fine to coarse.
        "temperal_downsample": [
            f"decoder.up_blocks.{i}.upsamplers.0.time_conv.bias" in shapes
            for i in reversed(range(stages - 1))
        ],
    }
    wanted = expected_shapes(config)
    problems = sorted(
        f"{key} (file {_text(shapes.get(key))}, model {_text(wanted.get(key))})"
        for key in shapes.keys() | wanted.keys()
        if shapes.get(key) != wanted.get(key)
    )
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(
            f"{source}: {len(problems)} tensors do not fit the VAE that the others describe: "
            f"{', '.join(problems[:6])}{more}"
        )
    return config


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor of an `AutoencoderKLQwenImage` without attn_scales."""
    base, latent, blocks = config["base_dim"], config["z_dim"], config["num_res_blocks"]
    mult, temporal = config["dim_mult"], config["temperal_downsample"]
    last = len(mult) - 1
    shapes: dict[str, Shape] = {}

    def conv(name: str, width_in: int, width_out: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (width_out, width_in, *kernel)
        shapes[f"{name}.bias"] = (width_out,)

    def resnet(name: str, width_in: int, width_out: int) -> None:
        shapes[f"{name}.norm1.gamma"] = (width_in, 1, 1, 1)
        conv(f"{name}.conv1", width_in, width_out, 3, 3, 3)
        shapes[f"{name}.norm2.gamma"] = (width_out, 1, 1, 1)
        conv(f"{name}.conv2", width_out, width_out, 3, 3, 3)
        if width_in != width_out:
            conv(f"{name}.conv_shortcut", width_in, width_out, 1, 1, 1)

    def middle(name: str, width: int) -> None:
        shapes[f"{name}.attentions.0.norm.gamma"] = (width, 1, 1)
        conv(f"{name}.attentions.0.to_qkv", width, 3 * width, 1, 1)
        conv(f"{name}.attentions.0.proj", width, width, 1, 1)
        for i in range(2):
            resnet(f"{name}.resnets.{i}", width, width)

    def out(name: str, width_in: int, width_out: int) -> None:
        shapes[f"{name}.norm_out.gamma"] = (width_in, 1, 1, 1)
        conv(f"{name}.conv_out", width_in, width_out, 3, 3, 3)

    # Encoder: one flat list of blocks, a down-sampling after every stage but the last.
    conv("encoder.conv_in", 3, base, 3, 3, 3)
    number, width = 0, base
    for stage, factor in enumerate(mult):
        for _ in range(blocks):
            resnet(f"encoder.down_blocks.{number}", width, base * factor)
            number, width = number + 1, base * factor
        if stage < last:
            conv(f"encoder.down_blocks.{number}.resample.1", width, width, 3, 3)
            if temporal[stage]:
                conv(f"encoder.down_blocks.{number}.time_conv", width, width, 3, 1, 1)
            number += 1
    middle("encoder.mid_block", width)
    out("encoder", width, 2 * latent)
    conv("quant_conv", 2 * latent, 2 * latent, 1, 1, 1)

    # Decoder: the same stages backwards, one block more each; an up-sampling halves the width.
    conv("post_quant_conv", latent, latent, 1, 1, 1)
    conv("decoder.conv_in", latent, width, 3, 3, 3)
    middle("decoder.mid_block", width)
    for stage, factor in enumerate(reversed(mult)):
        name = f"decoder.up_blocks.{stage}"
        for i in range(blocks + 1):
            resnet(f"{name}.resnets.{i}", width, base * factor)
            width = base * factor
        if stage < last:
            if temporal[last - 1 - stage]:
                conv(f"{name}.upsamplers.0.time_conv", width, 2 * width, 3, 1, 1)
            conv(f"{name}.upsamplers.0.resample.1", width, width // 2, 3, 3)
            width //= 2
    out("decoder", width, 3)
    return shapes


def _first(shapes: Mapping[str, Shape], key: str, source: str) -> int:
    if not shapes.get(key):
        raise CheckpointError(f"{source}: its VAE has no {key}; the file is incomplete")
    return shapes[key][0]


def _text(shape: Shape | None) -> str:
    return "none" if shape is None else str(list(shape))
