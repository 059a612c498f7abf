"""How different two pictures look to a pretrained network: EfficientNet-Lite0.

Named for what it is: it stands beside LPIPS (VGG-16) and rFID (Inception), whose weights must be
downloaded, and its values compare with its own alone.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from viq.models.vision.efficientnet import STRIDE_32, EfficientNetLite0

_COMPARED = (0, 2, 4, 7, 10)  # blocks at strides of 2, 4, 8, 16 and 16 px


class EfficientNetDistance:
    """Distances between pictures, and features for the distance between sets of them."""

    def __init__(self, network: EfficientNetLite0 | None = None) -> None:
        self.network = network or EfficientNetLite0.from_package()

    @torch.inference_mode()
    def measure(self, a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Compare two pictures.

        As LPIPS without its learned weights: features of five blocks are scaled to unit length at
        each place; squared differences are averaged over places, then over blocks.

        Args:
            a, b: uint8 (H, W, 3) of the same size.

        Returns:
            The distance, 0 to 4, and the features (320,) of each: means of the last block.
        """
        images = torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2).float() / 127.5 - 1
        *compared, last = self.network(images, (*_COMPARED, STRIDE_32))
        distances = []
        for features in compared:
            ours, theirs = F.normalize(features, dim=1)
            distances.append((ours - theirs).square().sum(0).mean())
        pooled = last.mean((2, 3)).numpy()
        return float(torch.stack(distances).mean()), pooled[0], pooled[1]
