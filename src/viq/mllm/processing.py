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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from viq.core.files import bundled
from viq.core.types import IGNORE, Grid, ViqError, language_tokens
from viq.core.untrusted import fingerprint as checked_fingerprint
from viq.core.untrusted import fraction, whole_number
from viq.data.text.chat_format import ChatConfig, encode_chat, encode_turns
from viq.data.text.chat_template import IMAGE_PAD, answer_ends, encode_text, image_token_id
from viq.data.text.conversations import ConversationError, Turn
from viq.data.text.multimodal_template import language_template, multimodal_template
from viq.data.text.templates import formatted, is_prompt, parsed, template_of
from viq.image.patches import PAD_MODES
from viq.mllm.image_processing import ViQImageProcessor, checked_pad_mode
from viq.mllm.keywords import OF_CALL, OF_TEMPLATE, check_keywords, flattened
from viq.mllm.messages import (
    checked_turns,
    grouped,
    images_in,
    is_one,
    turns_alone,
    wants_head,
)
from viq.mllm.padding import NAMES, Padding
from viq.mllm.visuals import as_codes, checked_ids, is_codes, look

_FORMATS = CHATML, OWN = "chatml", "own"


@dataclass(frozen=True)
class _Asked:
    """What a call asks of each sample, as the arguments of `ViQProcessor.__call__`."""

    labels: bool
    head: bool | None
    unfinished: bool
    complete: bool  # add_special_tokens=False


class ViQProcessor(ProcessorMixin):
    """Text tokenizer, chat format and images, together.

    Args:
        tokenizer: of the language model; knows the two special tokens of ChatML, or has a chat
            template.
        chat_template: instead of that of the tokenizer.
        system: text of the system turn; "" for none.
        merge_size: as in the config of the model.
        max_pixels: images with a larger area are shrunk to it, as `viq encode --max-pixels` does.
        max_length: tokens of a conversation with labels, see `encode_chat`.
        fingerprint: of the tokenizer whose codes the model reads; "" accepts all.
        codebook_size: its number of codes.
        pad_mode: how that tokenizer has images padded to whole patches: "constant" for grey, or
            "replicate" for the last pixels again.
        min_confidence: from 0 to 1; `viq chat` answers "I don't know." where the model is less
            sure (`viq.mllm.confidence`).
        chat_format: "chatml", "own" for the chat template, or "" for what the tokenizer has.

    Raises:
        ViqError: an argument has another type or is out of its range, or there is no such argument.
    """

    image_token = IMAGE_PAD

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
        pad_mode: str = PAD_MODES[0],
        min_confidence: float = 0.0,
        chat_format: str = "",
        **kwargs: Any,
    ) -> None:
        check_keywords(kwargs, ViQProcessor.__init__)
        if chat_format not in ("", *_FORMATS):
            raise ViqError(f"chat_format: {chat_format!r:.80} is not known; give chatml or own")
        self.pad_mode = checked_pad_mode(pad_mode)
        self.min_confidence = fraction(min_confidence, "min_confidence")
        if isinstance(chat_template, Mapping):
            chat_template = chat_template.get("default")
        own = language_template(chat_template or tokenizer.chat_template)
        tokenizer.chat_template = None if chat_format == CHATML else own
        self.image_token_id: int = image_token_id(tokenizer)
        self.chat_format = CHATML if template_of(tokenizer) is None else OWN
        if tokenizer.pad_token_id is None:  # a batch is padded with it, masked and unscored
            tokenizer.pad_token = tokenizer.eos_token or answer_ends(tokenizer)[0]
        tokenizer.padding_side = "left"  # pipelines put batches together by it
        if not isinstance(system, str):
            raise ViqError(f"system: {system!r:.80} is no text")
        self.system = system
        self.merge_size = whole_number(merge_size, "merge_size", 1, 4)
        self.max_pixels = whole_number(max_pixels, "max_pixels", 1, 2**40)
        self.max_length = whole_number(max_length, "max_length", 1, 2**31)
        self.fingerprint = checked_fingerprint(fingerprint, "fingerprint")
        self.codebook_size = whole_number(codebook_size, "codebook_size", 1, 2**16)
        super().__init__(tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers: of a folder, the name of a bundled model, or a hub id."""
        found = bundled(pretrained_model_name_or_path) or pretrained_model_name_or_path
        return super().from_pretrained(found, *args, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; folders of release 0.1 say no format and are in ChatML."""
        processor_dict = {"chat_format": CHATML, **processor_dict}
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; also what `AutoImageProcessor` reads."""
        done = super().save_pretrained(save_directory, *args, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        return done

    @property
    def image_processor(self) -> ViQImageProcessor:
        """For pictures alone; pipelines look for it."""
        return ViQImageProcessor(max_pixels=self.max_pixels, pad_mode=self.pad_mode)

    @property
    def chat_template(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For messages of text and images, in jinja: what is saved in the folder."""
        own = template_of(self.tokenizer)
        if own is None:
            return multimodal_template(None, self.system)
        return multimodal_template(own.source, self.system, takes_system=own.takes_system)

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if source is not None:
            self.tokenizer.chat_template = language_template(source)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: Any = None,
        codes: Any = None,
        *,
        labels: bool = False,
        keys: Sequence[str] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of the model, padded on the left.

        Args:
            images: paths, bytes, PIL images or uint8 arrays, in the order of their marks: one, or a
                list; of a batch, one or a list for each text. Codes may stand here, too.
            text: a question, a list of messages, what `apply_chat_template` gave for one, or a
                batch of any.
            codes: instead of images, `viq.Codes` in the same form, or rows of a store
                (`viq.mllm.visuals.as_codes`).
            labels: the conversations end with an answer; score what the assistant says.
            keys: name the samples of a batch in errors.
            add_generation_prompt: whether messages are followed by the head of an answer; None:
                unless they end with one.
            continue_final_message: the last message is to be gone on with.
            return_assistant_tokens_mask: also `assistant_masks`, 1 where `labels` would be.
            return_tensors: "pt" for torch, "np" for numpy.
            kwargs: as transformers documents them: `padding` (True by default), `padding_side`,
                `pad_to_multiple_of`, `truncation`, `max_length`, which never cut an image, and
                `add_special_tokens=False`: texts are complete as they stand, nothing is put around
                them, and what they spell out are special tokens.

        Returns:
            `input_ids`, `attention_mask` (B, L); with images `image_grid_hw` (n, 2) and `codes`
            (T, 4) or `pixel_values` (T, 768); `labels` (B, L) if asked for.

        Raises:
            ViqError: image placeholders and images differ in number, codes are of another
                tokenizer, or a conversation has another form; names the sample. Or an argument
                that there is not.
        """
        kwargs = flattened(kwargs)
        given = {name: kwargs.pop(name) for name in NAMES if name in kwargs}
        check_keywords(kwargs, ViQProcessor.__call__, OF_CALL)
        if return_tensors not in ("pt", "np", None):
            raise ViqError(f"return_tensors: {return_tensors!r:.80} is not known; give pt or np")
        if images is not None and codes is not None:
            raise ViqError("give images or codes, not both")
        if text is None:
            raise ViqError("give a text: a question, or messages; <image> says where images go")
        padding = Padding.of(given, self.max_length, self.tokenizer.truncation_side)
        samples = [text] if is_one(text) else list(text)
        groups = grouped(images if codes is None else codes, len(samples), is_one(text))
        names = list(keys) if keys is not None else [f"sample {i}" for i in range(len(samples))]
        asked = _Asked(
            labels=labels,
            head=add_generation_prompt,
            unfinished=continue_final_message,
            complete=kwargs.get("add_special_tokens") is False,
        )
        rows, visuals, grids = [], list[Tensor](), list[Grid]()
        for sample, group, name in zip(samples, groups, names, strict=True):
            ids, scored, seen = self._sample(sample, group, name, asked)
            rows.append((ids, scored))
            visuals += [patches for patches, _ in seen]
            grids += [grid for _, grid in seen]
        data = padding.batch(rows, self.tokenizer.pad_token_id, self.image_token_id, names)
        if return_assistant_tokens_mask:
            data["assistant_masks"] = (data["labels"] != IGNORE).long()
        if not labels:
            del data["labels"]
        if grids:
            data |= _joined(visuals, grids)
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in data.items()})
        return BatchFeature(data)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages to the text of a prompt, or with `tokenize` at once to inputs.

        Called with that text and the images, the processor gives what it gives for the messages.
        For the text alone images may be missing: `{"type": "image"}` says where one goes.

        Args:
            chat_template: instead of that of the processor, for these messages. It says no answers:
                for `return_assistant_tokens_mask` set the attribute of that name.
            return_dict: with `tokenize`, all inputs instead of `input_ids` alone.
            add_generation_prompt: whether the head of an answer follows; None: unless the messages
                end with an answer.
            continue_final_message, return_assistant_tokens_mask, return_tensors: as in a call.
            processor_kwargs, kwargs: with `tokenize`, other arguments of a call of the processor.

        Raises:
            ViqError: a conversation has another form, its text spells out special tokens, which a
                prompt in one text could not tell from its own, or there is no such argument.
        """
        source = None if chat_template == self.chat_template else language_template(chat_template)
        of_template = {name: kwargs.pop(name) for name in OF_TEMPLATE if name in kwargs}
        check_keywords(of_template, ViQProcessor.apply_chat_template, OF_TEMPLATE)
        if tokenize:
            heads: dict[str, Any] = {
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
            }
            asked: dict[str, Any] = {
                "return_assistant_tokens_mask": return_assistant_tokens_mask,
                "return_tensors": None if return_tensors == "auto" else return_tensors,
                **kwargs,
                **dict(processor_kwargs or {}),
            }
            if source is None:
                inputs = self(text=conversation, **heads | asked)
            else:
                if return_assistant_tokens_mask:
                    raise ViqError(
                        "return_assistant_tokens_mask: is not known of a text in another "
                        "chat_template; set processor.chat_template to it"
                    )
                text = self.apply_chat_template(conversation, source, **heads)
                if not {"images", "codes"} & asked.keys():
                    asked["images"] = images_in(conversation)
                given: dict[str, Any] = {**asked, "add_special_tokens": False}
                inputs = self(text=text, **given)
            return inputs if return_dict else inputs["input_ids"]
        kwargs = {name: value for name, value in flattened(kwargs).items() if name not in NAMES}
        check_keywords(kwargs, ViQProcessor.apply_chat_template, OF_CALL)
        samples = [conversation] if is_one(conversation) else list(conversation)
        texts = []
        for number, sample in enumerate(samples):
            turns = turns_alone(sample, f"sample {number}")
            head = wants_head(turns, add_generation_prompt, continue_final_message)
            texts.append(
                formatted(
                    turns,
                    self.system,
                    self.tokenizer,
                    head=head,
                    unfinished=continue_final_message,
                    source=source,
                )
            )
        return texts[0] if is_one(conversation) else texts

    def answers(self, generated_BL: Tensor, inputs: Any) -> list[str]:
        """What `generate` added to each sequence of `inputs`, as plain text."""
        new = generated_BL[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "codes", "pixel_values", "image_grid_hw"]

    # Steps of the above

    def _sample(
        self, sample: Any, group: list[Any], name: str, asked: _Asked
    ) -> tuple[list[int], list[int], list[tuple[Tensor, Grid]]]:
        """Ids and labels of one sample, and its images, as far as they are left in it."""
        prompt, head = None, asked.head
        if isinstance(sample, str):
            chatml = template_of(self.tokenizer) is None
            prompt = parsed(sample) if chatml else None
            if prompt is None and (asked.complete or is_prompt(sample, self.tokenizer)):
                seen = [self._look(item, name) for item in group]
                return *self._of_text(sample, self._places(seen), name, asked.labels), seen
        if prompt is not None:
            turns, group = checked_turns(prompt.messages, group, name)
            turns = [Turn(role="system", text=prompt.system), *turns]
            head = prompt.head if head is None else head
        else:
            turns, group = checked_turns(sample, group, name)
        seen = [self._look(item, name) for item in group]
        if asked.labels:
            config = ChatConfig(system=self.system, max_length=self.max_length)
            chat = encode_chat(turns, self._places(seen), self.tokenizer, config, name)
            return chat.ids, chat.labels, seen[: chat.images]
        ids, labels = encode_turns(
            turns,
            self._places(seen),
            self.tokenizer,
            self.system,
            head=wants_head(turns, head, asked.unfinished),
            unfinished=asked.unfinished,
            where=name,
        )
        return ids, labels, seen

    def _of_text(
        self, text: str, places: list[int], name: str, labels: bool
    ) -> tuple[list[int], list[int]]:
        if labels:
            raise ViqError(f"{name}: labels need messages; give them instead of a text")
        try:
            ids = encode_text(text, places, self.tokenizer)
        except ConversationError as error:
            raise ConversationError(f"{name}: {error}") from None
        return ids, [IGNORE] * len(ids)

    def _places(self, seen: Sequence[tuple[Tensor, Grid]]) -> list[int]:
        """Tokens that each image takes."""
        return [language_tokens(grid, self.merge_size) for _, grid in seen]

    def _look(self, item: Any, name: str) -> tuple[Tensor, Grid]:
        """Codebook indices (T, 4) of codes, or patches (T, 768) of an image, and its grid."""
        if not is_codes(item):
            return look(item, name, max_pixels=self.max_pixels, pad_mode=self.pad_mode)
        codes = as_codes(item, name)
        ids = checked_ids(
            codes, name, fingerprint=self.fingerprint, codebook_size=self.codebook_size
        )
        return ids, codes.grid


def _joined(visuals: Sequence[Tensor], grids: Sequence[Grid]) -> dict[str, Tensor]:
    """Images of a batch, one after another."""
    if len({patches.dtype for patches in visuals}) > 1:
        raise ViqError("pictures and codes in one batch: encode the pictures first (viq encode)")
    kind = "codes" if visuals[0].dtype == torch.long else "pixel_values"
    return {kind: torch.cat(list(visuals)), "image_grid_hw": torch.tensor(list(grids))}
