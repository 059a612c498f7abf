"""SimVQ: a convolutional tokenizer whose codebook is a linear map of fixed rows.

Loads the published Lightning checkpoints (.ckpt), or safetensors of the bare weights. Modules have
the names of the published weights, whose shapes tell all sizes; a config beside the file adds the
size of pictures and whether the averaged weights are the ones to use.

n = images, h, w = rows and columns of codes, e = codes of the codebook, d = channels of a code.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from viq.core.errors import ViqError, first_line
from viq.core.files import read_bytes
from viq.core.types import MAX_PATCHES
from viq.eval.peers.network import (
    SquarePeer,
    count_of,
    find_weights,
    first_size,
    load_frozen,
    named,
    section,
    wanted_weights,
    whole,
)
from viq.eval.peers.pictures import Pictures
from viq.weights.checkpoint import CheckpointError, building, read_object
from viq.weights.tensors import read_tensors

LICENCE = "unknown"  # that of the code is MIT; of the weights none is stated

_FILES = ("*.ckpt", "model.safetensors", "weights.safetensors")
_CONFIGS = ("config.yaml", "size128/config.yaml", "config.json")
_PARTS = ("encoder.", "decoder.", "quantize.")
_AVERAGED = "model_ema."  # before the name of a parameter without its dots
_FIXED = "quantize.embedding.weight"  # not trained, so not averaged
_YAML_BYTES = 2**20  # of a config, which takes a second to read
_SIZE = 128  # px, of the published models
_ROWS = 64  # places that are compared with the codebook at a time


@dataclass(frozen=True, kw_only=True)
class SimVQConfig:
    """Sizes of a network, as the shapes of its weights tell them.

    Attributes:
        stem: channels after the first convolution.
        widths: channels of each level, fine to coarse.
        blocks: residual blocks of a level.
        codes: rows of the codebook.
        code_width: channels of a row.
    """

    stem: int
    widths: tuple[int, ...]
    blocks: int
    codes: int
    code_width: int


class _Residual(nn.Module):
    """Twice GroupNorm, swish, convolution; and the input, in as many channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width_in), _norm(width_out)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        widened = width_in != width_out
        self.nin_shortcut = (
            nn.Conv2d(width_in, width_out, 1, bias=False) if widened else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(y))) + self.nin_shortcut(x)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def _residuals(blocks: int, width_in: int, width_out: int) -> nn.Sequential:
    widths = [width_in] + [width_out] * blocks
    return nn.Sequential(*(_Residual(*widths[i : i + 2]) for i in range(blocks)))


class _Upsample(nn.Module):
    """Twice the sides: four times the channels, which go to the four pixels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # n, y in a place, x in a place, channel, row, column
        y = self.conv1(x).unflatten(1, (2, 2, -1))
        return y.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class _Level(nn.Module):
    """The residual blocks of one level, and the step to its neighbour, of `down` or `up` channels
    (0: there is none)."""

    def __init__(self, blocks: nn.Module, *, down: int = 0, up: int = 0) -> None:
        super().__init__()
        self.block = blocks
        self.downsample = nn.Conv2d(down, down, 3, stride=2, padding=1) if down else nn.Identity()
        self.upsample = _Upsample(up) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.downsample(self.block(x)))


class _Encoder(nn.Module):
    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, config.stem, 3, padding=1, bias=False)
        self.down = nn.Sequential(
            *(
                _Level(_residuals(config.blocks, before, width), down=width if i < last else 0)
                for i, (before, width) in enumerate(
                    zip((config.stem, *widths[:-1]), widths, strict=True)
                )
            )
        )
        self.mid_block = _residuals(config.blocks, widths[-1], widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.code_width, 1)

    def forward(self, values: Tensor) -> Tensor:
        x = self.mid_block(self.down(self.conv_in(values)))
        return self.conv_out(F.silu(self.norm_out(x)))


class _Decoder(nn.Module):
    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.code_width, widths[-1], 3, padding=1)
        self.mid_block = _residuals(config.blocks, widths[-1], widths[-1])
        # Numbered from fine to coarse, run from coarse to fine.
        self.up = nn.ModuleList(
            _Level(_residuals(config.blocks, before, width), up=width if i else 0)
            for i, (before, width) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes_ndhw: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(codes_ndhw))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Quantizer(nn.Module):
    """Nearest rows of a table that is a linear map of fixed rows."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.embedding_proj = nn.Linear(width, width)

    @functools.cached_property
    def table_ed(self) -> Tensor:
        """The codebook: not the fixed rows themselves, which official code decodes stored codes
        with, to another picture."""
        return self.embedding_proj(self.embedding.weight)

    def nearest(self, z_Pd: Tensor) -> Tensor:
        """Number of the nearest row of each, int64 (P,)."""
        squares_e = self.table_ed.square().sum(1)
        # Of |z - t|^2, |z|^2 is the same for all rows.
        parts = [torch.addmm(squares_e, z, self.table_ed.T, alpha=-2) for z in z_Pd.split(_ROWS)]
        return torch.cat([part.argmin(1) for part in parts])


class SimVQ(nn.Module):
    """Codes are int64 (n, h, w)."""

    code_dtype = np.int32

    def __init__(self, config: SimVQConfig, side: int) -> None:
        super().__init__()
        stride = 2 ** (len(config.widths) - 1)
        if side % stride:
            raise ValueError(f"pictures of {side} px, which is no multiple of {stride}")
        self.code_shape, self.code_count = (side // stride, side // stride), config.codes
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = _Quantizer(config.codes, config.code_width)

    def codes(self, values_n3SS: Tensor) -> Tensor:
        z_ndhw = self.encoder(values_n3SS)
        nearest = self.quantize.nearest(z_ndhw.permute(0, 2, 3, 1).flatten(0, 2))
        return nearest.view(len(z_ndhw), *z_ndhw.shape[2:])

    def features(self, codes: Tensor) -> Tensor:
        return self.quantize.table_ed[codes.flatten(1)]

    def pixels(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantize.table_ed[codes].permute(0, 3, 1, 2))


def load(path: str | os.PathLike[str]) -> SquarePeer:
    """SimVQ of a checkpoint, or of a folder with one.

    Raises:
        CheckpointError: files are missing, damaged, or of another model.
    """
    file = find_weights(Path(path), _FILES, "SimVQ")
    side, averaged = _settings(file.parent)
    content = read_tensors(file)
    nested = file.suffix == ".ckpt" or "state_dict" in content
    state = section(content, "state_dict", str(file)) if nested else content
    weights = wanted_weights(state, lambda name: not name.startswith(_PARTS), str(file))
    config = _config({name: tuple(t.shape) for name, t in weights.items()}, str(file))
    with building(str(file)):
        network = SimVQ(config, side)
    held = any(name.startswith(_AVERAGED) for name in state)
    # Only training writes both; files of bare weights are of one kind, whatever a config says.
    if held if averaged is None else averaged and (held or file.suffix == ".ckpt"):
        weights = _averaged(state, network.state_dict(), str(file))
    load_frozen(network, weights, str(file))
    bits = math.prod(network.code_shape) * math.log2(config.codes)
    pictures = Pictures(shorter=side, side=side)
    return SquarePeer(network, pictures, name=named("simvq", path), licence=LICENCE, bits=bits)


def _averaged(state: Mapping[str, Any], names: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The moving averages of the weights, under the names of the weights themselves."""
    stored = {name: _AVERAGED + name.replace(".", "") for name in names} | {_FIXED: _FIXED}
    if absent := sorted(key for key in stored.values() if key not in state):
        raise CheckpointError(
            f"{source}: {len(absent)} averaged weights are missing, such as {absent[0]}; "
            "download it again"
        )
    found = wanted_weights({key: state[key] for key in stored.values()}, lambda _: False, source)
    return {name: found[key] for name, key in stored.items()}


def _config(shapes: Mapping[str, tuple[int, ...]], source: str) -> SimVQConfig:
    levels = max(1, count_of(shapes, "encoder.down."))
    size = functools.partial(first_size, shapes, source=source, what="SimVQ tokenizer")
    return SimVQConfig(
        stem=size("encoder.conv_in.weight"),
        widths=tuple(size(f"encoder.down.{i}.block.0.conv1.weight") for i in range(levels)),
        blocks=count_of(shapes, "encoder.down.0.block."),
        codes=size(_FIXED),
        code_width=size("decoder.conv_in.weight", axis=1),
    )


def _settings(folder: Path) -> tuple[int, bool | None]:
    """The side of pictures, px, and whether averaged weights are used (None: where there are any),
    of the config in a folder."""
    path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    if path is None:
        return _SIZE, None
    values = read_object(path) if path.suffix == ".json" else _yaml(path)
    model = values.get("model", values)
    model = model.get("init_args", model) if isinstance(model, dict) else {}
    sizes = model.get("ddconfig")
    resolution = sizes.get("resolution", _SIZE) if isinstance(sizes, dict) else _SIZE
    averaged = model.get("use_ema")
    if averaged is not None and not isinstance(averaged, bool):
        raise CheckpointError(f"{path}: use_ema is {averaged!r:.80}, neither true nor false")
    most = math.isqrt(MAX_PATCHES)
    side = whole(model.get("size", resolution), f"{path}: size", most)
    return side, averaged


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_bytes(path, _YAML_BYTES))
    except (OSError, ViqError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no settings; copy it again")
    return values
