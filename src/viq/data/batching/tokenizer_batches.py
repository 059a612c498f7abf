"""What one micro-batch of training holds, and the endless, resumable stream of them.

Two kinds of pictures come together: those of conversations, packed to a token budget, and crops
without text that only teach reconstruction (`data/batching/crops.py`). The images of conversations
come first in the pack.

T = patches of all images, D = values per patch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import PATCH_SIZE, Size, grid_of, language_tokens
from viq.data.batching.crops import CropConfig, Pictures, make_batch
from viq.data.batching.mixture import Mixture, Position, Stream
from viq.data.corpora.corpora import Example
from viq.data.text.chat_format import ChatConfig, EncodedChat, TextPack, encode_chat, pack_chats
from viq.data.text.conversations import ConversationError
from viq.image.open import limit_pixels
from viq.image.patches import PatchBatch, lengths_of, normalize, patchify, unpatchify

_RESIZE = re.compile(r"(\d{1,6})x(-?\d{1,6})")
_SIDE = 64  # px, at least, where a record gives both sides


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of one stage.

    A stage that reads no conversations, as it has `crops` and no text loss, reads `crops` and
    `gradient_accumulation` alone; of the others, those without a text loss never read `tokens`,
    `merge_size` and `chat`.
    """

    gradient_accumulation: int = 1  # micro-batches a step, shared by all processes
    # Images of conversations are shrunk to at most this side squared, also those that ask for more.
    max_side: int = 384
    multiple: int = 1  # px; their sides are cut down to multiples of this (official code: 16)
    tokens: int = 1024  # of language, a micro-batch
    patches: int = 1536  # of the images of conversations, a micro-batch
    merge_size: int = 2  # patches a side of a visual token (paper: 4 in stage 1a, then 2)
    chat: ChatConfig = field(default_factory=ChatConfig)
    synthetic: Mapping[str, float] = field(
        default_factory=dict
    )  # kind of synthetic picture: weight
    synthetic_ratio: float = 0.5  # of the conversations, where there are others
    synthetic_sides: tuple[int, int] = (64, 160)  # px
    crops: CropConfig | None = None  # pictures without text, beside the conversations


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward and backward pass.

    Attributes:
        batch: all images.
        mask_TD: 1 where a value belongs to an image, 0 in the padding.
        sizes: (height, width) of each image, px.
        text: conversations about the first `text_images` images; None without any.
        captions: of each image; "" where there is none.
        ids_TS: codes of the images, where they are known beforehand.
        taught_nC: the teacher's tokens of the images, where they are known beforehand.
    """

    batch: PatchBatch
    mask_TD: Tensor
    sizes: tuple[Size, ...]
    text: TextPack | None = None
    text_images: int = 0
    captions: tuple[str, ...] = ()
    ids_TS: Tensor | None = None
    taught_nC: Tensor | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What the sums of loss terms are divided by."""
        return {
            "answers": self.text.answers if self.text else 0,
            "tokens": len(self.text.ids_L) if self.text else 0,
            "images": len(self.sizes),
            "patches": len(self.mask_TD),
            "captions": sum(map(bool, self.captions)),
        }

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        text = self.text and self.text.to(device)
        batch = replace(self.batch, patches_TD=self.batch.patches_TD.to(device))
        ids_TS = self.ids_TS if self.ids_TS is None else self.ids_TS.to(device)
        taught_nC = self.taught_nC if self.taught_nC is None else self.taught_nC.to(device)
        mask_TD = self.mask_TD.to(device)
        return replace(
            self, batch=batch, mask_TD=mask_TD, text=text, ids_TS=ids_TS, taught_nC=taught_nC
        )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    chat: EncodedChat | None
    pixels: tuple[np.ndarray, ...]
    caption: str


class BatchStream(Stream[_Prepared, MicroBatch]):
    """The micro-batches of a stage, for the lanes of one process.

    Args:
        tokenizer: text tokenizer; None: conversations give images and captions only.
        photos: what crops are cut from.
        lanes, positions, threads: see `Stream`.
    """

    def __init__(
        self,
        config: DataConfig,
        mixture: Mixture | None,
        *,
        seed: int,
        lanes: Sequence[int],
        tokenizer: Any = None,
        photos: Pictures = (),
        positions: Mapping[int, Position] | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(
            mixture,
            lanes=lanes,
            all_lanes=config.gradient_accumulation,
            budgets=(config.tokens, config.patches),
            positions=positions,
            threads=threads,
        )
        self.config, self.seed = config, seed
        self.tokenizer, self.photos = tokenizer, photos

    def _prepare(self, example: Example) -> _Prepared:
        """Raises ConversationError for one that is too long, that has no image, or whose `resize`
        says no size."""
        pixels = tuple(
            self._fit(self._asked(picture, resize, example.chat.where))
            for picture, resize in zip(example.pictures, example.chat.resize, strict=True)
        )
        chat = None
        if self.tokenizer is not None:
            places = [language_tokens(grid_of(p.shape[:2]), self.config.merge_size) for p in pixels]
            chat = encode_chat(
                example.chat.turns, places, self.tokenizer, self.config.chat, example.chat.where
            )
            pixels = pixels[: chat.images]
        if not pixels:  # so that every micro-batch has all loss terms, in every process
            raise ConversationError(
                f"{example.chat.where}: has no image in the part that fits; nothing to learn from"
            )
        return _Prepared(chat=chat, pixels=pixels, caption=example.caption or "")

    def _asked(self, picture: Image.Image, resize: Any, where: str) -> Image.Image:
        """As large as its record asks for, if it does, within the area of the stage."""
        if resize is None:
            return picture
        size = asked_size(picture.size, resize, self.config.max_side, where)
        return picture.resize(size, Image.Resampling.BILINEAR)

    def _fit(self, picture: Image.Image) -> np.ndarray:
        """Shrunk to the area of the stage, never enlarged, sides cut to whole multiples."""
        small = limit_pixels(picture, self.config.max_side**2)
        width, height = (
            max(self.config.multiple, side // self.config.multiple * self.config.multiple)
            for side in small.size
        )
        if (width, height) != small.size:
            small = small.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(small)

    def _cost(self, item: _Prepared) -> tuple[int, int]:
        """Language tokens and patches of one example."""
        patches = lengths_of([grid_of(p.shape[:2], PATCH_SIZE) for p in item.pixels])
        return len(item.chat.ids) if item.chat else 0, sum(patches)

    def _collate(self, items: Sequence[_Prepared], number: int) -> MicroBatch:
        pixels = [normalize(p) for item in items for p in item.pixels]
        patches = [patchify(p) for p in pixels]
        masks = [patchify(torch.ones_like(p)) for p in pixels]
        sizes = [(p.shape[-2], p.shape[-1]) for p in pixels]
        captions = [
            item.caption if first == 0 else ""
            for item in items
            for first in range(len(item.pixels))
        ]
        chats = [item.chat for item in items if item.chat is not None]
        grids = [grid_of(size) for size in sizes]
        text_images = len(sizes)
        if self.config.crops is not None:
            crop = make_batch(self.photos, self.config.crops, self.seed, number)
            patches.append(crop.batch.patches_TD)
            masks.append(crop.mask_TD)
            grids += crop.batch.grids_hw
            sizes += crop.sizes
        return MicroBatch(
            batch=PatchBatch(patches_TD=torch.cat(patches), grids_hw=tuple(grids)),
            mask_TD=torch.cat(masks),
            sizes=tuple(sizes),
            text=pack_chats(chats) if chats else None,
            text_images=text_images if chats else 0,
            captions=(*captions, *[""] * (len(sizes) - text_images)),
        )


def asked_size(size: tuple[int, int], resize: Any, max_side: int, where: str) -> tuple[int, int]:
    """The size that `resize` of the official data asks for, rounded as the official loader does.

    "896x14" is an area of 896 px squared, enlarged or shrunk, with sides cut down to multiples of
    14 px; "896x0" a square of 896 px, stretched; a list is width and height, each at least 64 px.

    Args:
        size: (width, height) of the image, px.
        max_side: the area is at most this squared, whatever is asked for.

    Returns:
        (width, height), px.

    Raises:
        ConversationError: it says something else.
    """
    width, height = size

    def of_area(side: int, multiple: int) -> tuple[int, int]:
        sides = (math.isqrt(a * side * side // b) for a, b in ((width, height), (height, width)))
        new_width, new_height = (max(multiple, s // multiple * multiple) for s in sides)
        return new_width, new_height

    match resize:
        case str(text) if found := _RESIZE.fullmatch(text):
            side, multiple = min(int(found[1]), max_side), int(found[2])
            if multiple <= 0 < side:
                return side, side
            if 0 < multiple <= side:
                return of_area(side, multiple)
        case [int(width), int(height)] if min(width, height) >= _SIDE:
            return (width, height) if width * height <= max_side**2 else of_area(max_side, 1)
    raise ConversationError(
        f'{where}: resize is {resize!r:.60}; write "SIDExMULTIPLE" as "896x16", or'
        f" [width, height] of at least {_SIDE} px"
    )


def images_of(micro: MicroBatch) -> list[Tensor]:
    """Pixels (3, H, W) of each image, in [-1, 1]."""
    parts = micro.batch.patches_TD.split(lengths_of(micro.batch.grids_hw))
    return [unpatchify(part, size) for part, size in zip(parts, micro.sizes, strict=True)]
