"""Pictures to patches of pixels, as `AutoImageProcessor` has it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from viq.core.types import ViqError
from viq.core.untrusted import whole_number
from viq.mllm.keywords import check_keywords
from viq.mllm.visuals import look


class ViQImageProcessor(BaseImageProcessor):
    """Pictures of any size to patches, packed one picture after another.

    Args:
        max_pixels: pictures with a larger area are shrunk to it.
    """

    model_input_names = ["pixel_values", "image_grid_hw"]

    def __init__(self, max_pixels: int = 768**2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_pixels = whole_number(max_pixels, "max_pixels", 1, 2**40)

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, *, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """`pixel_values` (T, 768) in [-1, 1], and `image_grid_hw` (n, 2), rows and columns.

        Args:
            images: one or a list: paths, bytes, PIL images or uint8 arrays.
            return_tensors: "pt" for torch, "np" for numpy.

        Raises:
            ViqError: no picture, or an argument that there is not.
        """
        check_keywords(kwargs, ViQImageProcessor.preprocess)
        if return_tensors not in ("pt", "np", None):
            raise ViqError(f"return_tensors: {return_tensors!r:.80} is not known; give pt or np")
        images = list(images) if isinstance(images, list | tuple) else [images]
        if not images:
            raise ViqError("give at least one picture")
        seen = [
            look(image, f"picture {number}", max_pixels=self.max_pixels)
            for number, image in enumerate(images)
        ]
        data = {
            "pixel_values": torch.cat([patches for patches, _ in seen]),
            "image_grid_hw": torch.tensor([grid for _, grid in seen]),
        }
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in data.items()})
        return BatchFeature(data)
