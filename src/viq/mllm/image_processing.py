"""Pictures to what `ViQTokenizerModel` takes, in the manner of transformers.

T = patches of all images, D = values per patch, n = images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from viq.core.types import ViqError, grid_of
from viq.core.untrusted import whole_number
from viq.image.arrays import is_tensor, to_bytes
from viq.image.open import ImageError, limit_pixels, open_image
from viq.image.patches import PAD_MODES, denormalize, normalize, patchify
from viq.mllm.keywords import check_keywords
from viq.models.tokenizer.inference import listed

# What of transformers' arguments asks for what is done anyway.
_OF_CALL: Mapping[str, tuple[Any, ...]] = {
    "do_resize": (False, None), "do_center_crop": (False, None), "do_normalize": (True, None),
    "do_convert_rgb": (True, None), "do_pad": (True, None), "size": (None,), "crop_size": (None,),
    "image_mean": (None, 0.5, [0.5, 0.5, 0.5]), "image_std": (None, 0.5, [0.5, 0.5, 0.5]),
    "rescale_factor": (None, 1 / 255), "resample": (None,), "data_format": (None,),
    "input_data_format": (None,), "disable_grouping": (None,), "device": (None, "cpu"),
}  # fmt: skip
_TENSORS = ("pt", "np", None)


class ViQImageProcessor(BaseImageProcessor):
    """Images of any size, at their own size, to patches.

    Args:
        do_rescale: whether values of arrays and tensors are in 0..255. False: floats in [0, 1]. As
            in transformers this is the caller's to say; values that show another range are refused.
            Paths, bytes and PIL images are not asked.
        max_pixels: images with a larger area are shrunk to it; None: none is.
        pad_mode: how images are padded to whole patches: "constant" for grey, or "replicate" for
            the last pixels again. With `image_sizes`, `ViQTokenizerModel` pads as its tokenizer
            wants it.
        kwargs: of transformers, where they ask for what is done anyway.

    Raises:
        ViqError: an argument is not followed here.
    """

    model_input_names = ["pixel_values", "image_grid_hw", "image_sizes"]

    def __init__(
        self,
        do_rescale: bool = True,
        max_pixels: int | None = None,
        pad_mode: str = PAD_MODES[0],
        **kwargs: Any,
    ) -> None:
        kwargs.pop("image_processor_type", None)  # in the file, for AutoImageProcessor
        check_keywords(kwargs, ViQImageProcessor.__init__, _OF_CALL)
        super().__init__()
        self.do_rescale = bool(do_rescale)
        self.pad_mode = checked_pad_mode(pad_mode)
        self.max_pixels = None if max_pixels is None else whole_number(
            max_pixels, "max_pixels", 1, 2**40
        )  # fmt: skip

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any,
        *,
        do_rescale: bool | None = None,
        max_pixels: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Patches of images, which may differ in size.

        Args:
            images: one or a list: paths, bytes, PIL images, arrays or tensors of one image,
                channels first or last, or of a batch (n, 3, H, W).
            do_rescale, max_pixels: instead of the processor's own.
            return_tensors: "pt", or "np" for arrays.

        Returns:
            `pixel_values` (T, D) float32 in [-1, 1], patches of one image after another, padded
            to whole patches; `image_grid_hw` (n, 2), rows and columns of patches; and
            `image_sizes` (n, 2), height and width in px.

        Raises:
            ImageError: an image cannot be read, or its values are in another range than
                `do_rescale` says; names it.
            ViqError: an argument is not followed here.
        """
        check_keywords(kwargs, ViQImageProcessor.preprocess, _OF_CALL)
        if return_tensors not in _TENSORS:
            raise ViqError(f"return_tensors {return_tensors!r:.40}: give pt or np")
        rescale = self.do_rescale if do_rescale is None else do_rescale
        limit = self.max_pixels if max_pixels is None else max_pixels
        opened = [
            limit_pixels(_opened(image, rescale, f"image {number}"), limit)
            for number, image in enumerate(listed(images))
        ]
        if not opened:
            raise ViqError("images: an empty list; pass at least one")
        sizes = [(image.height, image.width) for image in opened]
        data = {
            "pixel_values": torch.cat(
                [patchify(normalize(np.asarray(i)), pad_mode=self.pad_mode) for i in opened]
            ),
            "image_grid_hw": torch.tensor([grid_of(size) for size in sizes]),
            "image_sizes": torch.tensor(sizes),
        }
        if return_tensors == "np":
            data = {name: values.numpy() for name, values in data.items()}
        return BatchFeature(data)

    def postprocess(
        self, images: Any, return_tensors: str | None = "PIL.Image.Image", **kwargs: Any
    ) -> BatchFeature:
        """Pixels, as `decode_image_tokens` gives them, to pictures.

        Args:
            images: (n, 3, H, W), or a list of (3, H, W), in [-1, 1].
            return_tensors: "PIL.Image.Image"; "pt" or "np" for uint8 (H, W, 3).

        Returns:
            `pixel_values`, a list with one of these for each image, as Emu3's processor has it.
        """
        check_keywords(kwargs, ViQImageProcessor.postprocess, _OF_CALL)
        pixels = [denormalize(torch.as_tensor(image)).cpu() for image in listed(images)]
        if return_tensors == "pt":
            return BatchFeature({"pixel_values": pixels})
        arrays = [image.numpy() for image in pixels]
        if return_tensors == "np":
            return BatchFeature({"pixel_values": arrays})
        if return_tensors != "PIL.Image.Image":
            raise ViqError(f"return_tensors {return_tensors!r:.40}: give PIL.Image.Image, pt or np")
        return BatchFeature({"pixel_values": [Image.fromarray(array) for array in arrays]})


def checked_pad_mode(mode: Any) -> str:
    """A way to pad that `patchify` knows. Raises `ViqError`."""
    if mode not in PAD_MODES:
        raise ViqError(f"pad_mode: {mode!r:.80} is not known; give {' or '.join(PAD_MODES)}")
    return mode


def _opened(image: Any, rescale: bool, name: str) -> Image.Image:
    if isinstance(image, np.ndarray) or is_tensor(image):
        try:
            image = to_bytes(image, do_rescale=rescale)
        except ViqError as error:
            raise ImageError(f"{name}: {error}") from None
    return open_image(image, name=None if isinstance(image, str) else name)
