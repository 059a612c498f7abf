"""The trunk of EfficientNet-Lite0 (Tan and Le, 2019): stem and blocks, without its class head.

3.0M parameters, fully convolutional, so images of any size go through it. Batch normalisation is
folded into the convolutions (`models/vision/efficientnet.py`), which leaves each layer a weight and
a bias.

n = images, H, W = height and width in px, h, w = those divided by the stride of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

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
STRIDE_16, STRIDE_32 = 10, 15  # the last blocks at strides of 16 and 32 px
WIDTHS = tuple(group[5] for group in _GROUPS for _ in range(group[0]))  # channels of each block
STRIDES = (2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32)  # px, of each block


class Trunk(nn.Module):
    """Images in, features of chosen blocks out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList(
            _Block(kernel, stride if first else 1, expansion, cin if first else cout, cout)
            for repeats, kernel, stride, expansion, cin, cout in _GROUPS
            for first in [True] + [False] * (repeats - 1)
        )

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


class Conv(nn.Conv2d):
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
        both = pads[2], pads[0]
        if pads != [both[1], both[1], both[0], both[0]]:  # one pixel more below or at the right
            input, both = F.pad(input, pads), (0, 0)
        y = F.conv2d(input, self.weight, self.bias, self.stride, both, self.dilation, self.groups)
        return y if self.linear else F.relu6(y, inplace=True)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, kernel: int, stride: int, expansion: int, cin: int, cout: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.expand = Conv(cin, wide, 1) if expansion > 1 else nn.Identity()
        self.filter = Conv(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Conv(wide, cout, 1, linear=True)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.filter(self.expand(x)))
        return x + y if self.residual else y
