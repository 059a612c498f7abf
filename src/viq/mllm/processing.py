"""Questions and images to what `ViQForConditionalGeneration` takes, in the manner of Hugging Face.

    processor = ViQProcessor.from_pretrained(folder)
    inputs = processor(text="What is this?", images="cup.jpg")             # the tokenizer will run
    inputs = processor(text=["<image>Left of <image>?"], codes=[[a, b]])   # it is not needed
    inputs = processor(text=messages, codes=codes, labels=True)            # to train on

A text is a question, or a conversation as the chat templates of transformers take it, or what
`apply_chat_template` makes of one. It has `<image>` wherever an image goes; without any, images
come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken, BatchFeature, ProcessorMixin

from viq.core.codes import Codes
from viq.core.types import IGNORE, IMAGE_TOKEN, CodesError, Grid, ViqError, grid_of, language_tokens
from viq.core.untrusted import fingerprint as checked_fingerprint
from viq.core.untrusted import whole_number
from viq.data.sources.access import ImageText, is_encoded
from viq.data.sources.json_fields import is_image_part, part_source
from viq.data.text.chat_format import END, IMAGE_PAD, ChatConfig, encode_chat, encode_prompt
from viq.data.text.conversations import Conversation, Turn, marked, turns_of
from viq.data.text.templates import Prompt, formatted, parsed
from viq.image.open import limit_pixels, open_image
from viq.image.patches import normalize, patchify
from viq.mllm.keywords import OF_CALL, OF_TEMPLATE, check_keywords


class ViQProcessor(ProcessorMixin):
    """Text tokenizer, chat format and images, together.

    Args:
        tokenizer: of the language model; must know the two special tokens of ChatML.
        system: text of the system turn; "" for none.
        merge_size: as in the config of the model.
        max_pixels: images with a larger area are shrunk to it, as `viq encode --max-pixels` does.
        max_length: tokens of a conversation with labels, see `encode_chat`.
        fingerprint: of the tokenizer whose codes the model reads; "" accepts all.
        codebook_size: its number of codes.

    Raises:
        ViqError: an argument has another type or is out of its range, or there is no such argument.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        chat_template: Any = None,
        system: str = ChatConfig.system,
        merge_size: int = 2,
        max_pixels: int = 768**2,
        max_length: int = ChatConfig.max_length,
        fingerprint: str = "",
        codebook_size: int = 2**16,
        **kwargs: Any,
    ) -> None:
        check_keywords(kwargs, ViQProcessor.__init__)
        if IMAGE_PAD not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(IMAGE_PAD, special=True)], special_tokens=True)
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        if tokenizer.pad_token_id is None:  # a batch is padded with it, masked and unscored
            tokenizer.pad_token = tokenizer.eos_token or END
        if not isinstance(system, str):
            raise ViqError(f"system: {system!r:.80} is no text")
        self.system = system
        self.merge_size = whole_number(merge_size, "merge_size", 1, 4)
        self.max_pixels = whole_number(max_pixels, "max_pixels", 1, 2**40)
        self.max_length = whole_number(max_length, "max_length", 1, 2**31)
        self.fingerprint = checked_fingerprint(fingerprint, "fingerprint")
        self.codebook_size = whole_number(codebook_size, "codebook_size", 1, 2**16)
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: Any = None,
        codes: Any = None,
        *,
        labels: bool = False,
        keys: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of the model as tensors, padded on the left.

        Args:
            images: paths, bytes, PIL images or uint8 arrays, in the order of their marks: one, or a
                list; of a batch, one or a list for each text.
            text: a question, a list of messages, what `apply_chat_template` gave for one, or a
                batch of any.
            codes: instead of images, `viq.Codes` in the same form.
            labels: the conversations end with an answer; score what the assistant says.
            keys: name the samples of a batch in errors.
            kwargs: of transformers, where they ask for what is done anyway: `return_tensors="pt"`,
                `padding=True`, `padding_side="left"`, `add_special_tokens=False`.

        Returns:
            `input_ids`, `attention_mask` (B, L); with images `image_grid_hw` (n, 2) and `codes`
            (T, 4) or `pixel_values` (T, 768); `labels` (B, L) if asked for.

        Raises:
            ViqError: image placeholders and images differ in number, codes are of another
                tokenizer, or a conversation has another form; names the sample. Or `kwargs` ask for
                anything else.
        """
        check_keywords(kwargs, ViQProcessor.__call__, OF_CALL)
        if images is not None and codes is not None:
            raise ViqError("give images or codes, not both")
        samples = [text] if _is_one(text) else list(text)
        groups = _groups(images if codes is None else codes, len(samples), _is_one(text))
        names = list(keys) if keys is not None else [f"sample {i}" for i in range(len(samples))]
        rows, visuals, grids = [], list[Tensor](), list[Grid]()
        for sample, group, name in zip(samples, groups, names, strict=True):
            prompt = parsed(sample) if isinstance(sample, str) else None
            turns, group = _turns(prompt.messages if prompt else sample, group, name)
            seen = [self._look(item, name) for item in group]
            places = [language_tokens(grid, self.merge_size) for _, grid in seen]
            row = self._encode(turns, places, name, labels, prompt)
            rows.append(row[:2])
            visuals += [patches for patches, _ in seen[: row[2]]]
            grids += [grid for _, grid in seen[: row[2]]]
        data = self._padded(rows)
        if not labels:
            del data["labels"]
        if grids:
            kind = "codes" if visuals[0].dtype == torch.long else "pixel_values"
            data |= {kind: torch.cat(visuals), "image_grid_hw": torch.tensor(grids)}
        return BatchFeature(data)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: Any = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages to the text of a prompt, or with `tokenize` at once to inputs.

        Called with that text and the images, the processor gives what it gives for the messages.
        For the text alone images may be missing: `{"type": "image"}` says where one goes.

        Args:
            chat_template: there is one format only, ChatML; anything but None is refused.
            return_dict: with `tokenize`, all inputs instead of `input_ids` alone.
            add_generation_prompt: whether the text ends with the head of the answer.
            processor_kwargs, kwargs: with `tokenize`, other arguments of a call of the processor.

        Raises:
            ViqError: a conversation has another form, its text spells out special tokens of ChatML,
                which a prompt in one text could not tell from its own, or there is no such
                argument.
        """
        if chat_template is not None:
            raise ViqError("chat_template: the format is ChatML; leave it out")
        of_template = {name: kwargs.pop(name) for name in OF_TEMPLATE if name in kwargs}
        check_keywords(of_template, ViQProcessor.apply_chat_template, OF_TEMPLATE)
        if tokenize:
            inputs = self(text=conversation, **kwargs, **processor_kwargs or {})
            return inputs if return_dict else inputs["input_ids"]
        check_keywords(kwargs, ViQProcessor.apply_chat_template, OF_CALL)
        samples = [conversation] if _is_one(conversation) else list(conversation)
        texts = [
            formatted(
                _only_turns(sample, f"sample {number}"), self.system, head=add_generation_prompt
            )
            for number, sample in enumerate(samples)
        ]
        return texts[0] if _is_one(conversation) else texts

    def answers(self, generated_BL: Tensor, inputs: Any) -> list[str]:
        """What `generate` added to each sequence of `inputs`, as plain text."""
        new = generated_BL[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "codes", "pixel_values", "image_grid_hw"]

    # Steps of the above

    def _encode(
        self,
        turns: Sequence[Turn],
        places: Sequence[int],
        name: str,
        labels: bool,
        prompt: Prompt | None,
    ) -> tuple[list[int], list[int], int]:
        """Ids, labels, and how many of the images are left."""
        system = self.system if prompt is None else prompt.system
        if labels:
            config = ChatConfig(system=system, max_length=self.max_length)
            chat = encode_chat(turns, places, self.tokenizer, config, name)
            return chat.ids, chat.labels, chat.images
        ids = encode_prompt(turns, places, self.tokenizer, system)
        if prompt is not None and not prompt.head:
            ids = ids[: -len(encode_prompt([], [], self.tokenizer))]
        return ids, [IGNORE] * len(ids), len(places)

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        longest = max(len(ids) for ids, _ in rows)

        def left(values: Iterable[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor([[fill] * (longest - len(v)) + list(v) for v in values])

        ids_BL = left((ids for ids, _ in rows), self.tokenizer.pad_token_id)
        return {
            "input_ids": ids_BL.masked_fill(ids_BL == IMAGE_TOKEN, self.image_token_id),
            "attention_mask": left(([1] * len(ids) for ids, _ in rows), 0),
            "labels": left((labels for _, labels in rows), IGNORE),
        }

    def _look(self, item: Any, name: str) -> tuple[Tensor, Grid]:
        """Codebook indices (T, 4) of codes, or patches (T, 768) of an image, and its grid."""
        if not isinstance(item, Codes):
            if isinstance(item, str) and is_encoded(item):
                item = ImageText(item).read()
            image = limit_pixels(open_image(item, name=name), self.max_pixels)
            return patchify(normalize(np.asarray(image))), grid_of((image.height, image.width))
        if item.fingerprint and self.fingerprint and item.fingerprint != self.fingerprint:
            raise CodesError(
                f"{name}: codes of the tokenizer {item.fingerprint}, but the model reads those of "
                f"{self.fingerprint}: encode the image with that one"
            )
        ids = torch.from_numpy(item.ids.astype(np.int64)).flatten(0, 1)
        if ids.numel() and int(ids.max()) >= self.codebook_size:
            raise CodesError(
                f"{name}: code {int(ids.max())} is outside the codebook of {self.codebook_size}: "
                "the codes are damaged or made by another tokenizer"
            )
        return ids, item.grid


def _is_one(text: Any) -> bool:
    """Whether this is one text rather than a batch of them."""
    return isinstance(text, str) or bool(text) and isinstance(text[0], dict)


def _groups(given: Any, samples: int, is_one: bool) -> list[list[Any]]:
    """Images of each sample."""
    if given is None:
        return [[] for _ in range(samples)]
    if is_one:
        return [_listed(given)]
    groups = [_listed(group) for group in _listed(given)]
    if len(groups) != samples:
        raise ViqError(
            f"{samples} texts, but images of {len(groups)}: give a list of images for each text"
        )
    return groups


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _turns(sample: Any, images: list[Any], name: str) -> tuple[list[Turn], list[Any]]:
    """Checked turns of one sample, and its images, which messages may bring along."""
    if isinstance(sample, str):
        turns = [Turn(role="user", text=sample)]
    else:
        turns = turns_of(sample, name)
        images = images or [image for message in sample for image in _images_in(message)]
    turns = marked(turns, len(images))
    # Checked as training data are, which end with an answer.
    said = [turn for turn in turns if turn.role != "system"]
    answer = [Turn(role="assistant", text="?")] if len(said) % 2 else []
    Conversation(
        turns=(*turns, *answer), images=tuple(images), resize=(None,) * len(images), key=name,
        where=name,
    )  # fmt: skip
    return turns, images


def _only_turns(sample: Any, name: str) -> list[Turn]:
    """Turns of one sample whose images may come later."""
    if isinstance(sample, str):
        return [Turn(role="user", text=sample)]
    return marked(turns_of(sample, name), _unmarked(sample))


def _unmarked(sample: Any) -> int:
    """Images that messages bring along."""
    return sum(len(_images_in(message)) for message in sample)


def _images_in(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    images = [part for part in parts if isinstance(part, dict) and is_image_part(part)]
    found = [part_source(part) for part in images]
    return [] if all(image is None for image in found) else found
