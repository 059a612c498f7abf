"""A multimodal language model on codes, in the manner of Hugging Face.

A causal language model, the embedder of a tokenizer's codes and a projector between them. No vision
encoder: images come as codes. Where they come as pixels, the tokenizer is loaded beside the model
and turns them into codes first, so both give the same result.

    model = ViQForConditionalGeneration.from_pretrained("runs/mllm/2-answers/model")
    processor = ViQProcessor.from_pretrained("runs/mllm/2-answers/model")
    inputs = processor(text="How many cups are there?", codes=tokenizer.encode("photo.jpg"))
    print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))

`model.model` is the `ViQModel`, which gives hidden states; in it `language_model`, `embedder` and
`projector`. `model.lm_head` makes logits of them.

Names as elsewhere in transformers: B = sequences, L = their tokens, E = width of the language
model; T = patches of all images of the batch, one image after another, S = 4 slots, D = values
per patch, n = images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from viq.core.types import Grid
from viq.mllm.assisted import asks_for_candidates, check_candidates
from viq.mllm.base_model import ViQModel, ViQPreTrainedModel
from viq.mllm.cache_name import CACHE
from viq.mllm.config import ViQConfig
from viq.models.language.heads import check_head, final_logits
from viq.models.language.projector import MergeProjector
from viq.models.language.vision_language import AnswerScore, score_answers, visual_inputs
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights import checkpoint
from viq.weights.pretrained import causal_of

__all__ = ["ViQConfig", "ViQForConditionalGeneration", "ViQModel", "ViQPreTrainedModel"]


class ViQForConditionalGeneration(ViQPreTrainedModel, GenerationMixin):
    """Text and images in, text out.

    Build it of its parts with `from_parts`, or load one with `from_pretrained`.

    Attributes:
        model: the `ViQModel`.
        lm_head: hidden states to logits, but for what `final_logits` does.
    """

    def __init__(self, config: ViQConfig) -> None:
        super().__init__(config)
        causal = causal_of(config.text_config)
        self.model = ViQModel(config, causal.base_model)
        self.lm_head = causal.get_output_embeddings()
        self._tied_weights_keys = self._tied()
        self.post_init()

    def _tied(self) -> dict[str, str]:
        """The weight that a head shares with the embedding of words, wherever that lies."""
        embedding = self.get_input_embeddings()
        names = (name for name, module in self.named_modules() if module is embedding)
        return {"lm_head.weight": f"{next(names)}.weight"}

    @classmethod
    def from_parts(
        cls,
        language: Any,
        embedder: CodeEmbedder,
        *,
        image_token_id: int,
        merge_size: int = 2,
        image_positions: bool = False,
    ) -> ViQForConditionalGeneration:
        """A model of a causal language model and an embedder, which it takes over, and a new
        projector. Its whitener wants features of some images (`fit`), to be trained on.

        Raises:
            ViqError: the head of the language model does what would be left out.
        """
        check_head(language)
        config = ViQConfig(
            text_config=language.config,
            embedder_config=checkpoint.to_dict(embedder.config),
            merge_size=merge_size,
            image_positions=image_positions,
            image_token_id=image_token_id,
        )
        with torch.device("meta"), checkpoint.WithoutInit():
            model = cls(config)
        base = model.model
        base.projector = MergeProjector(base.projector.config)
        base.language_model, base.embedder = language.base_model, embedder
        model.lm_head = language.get_output_embeddings()
        model.generation_config = language.generation_config
        return model.train(language.training)

    # What transformers calls

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        codes: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Logits (B, L, vocabulary), and the mean loss of the labelled tokens if there are labels.

        Args:
            input_ids, codes, pixel_values, image_grid_hw, past_key_values, cache: as in
                `ViQModel.forward`.
            labels: (B, L), -100 where nothing is scored.
            logits_to_keep: of that many last places only, or of these places; 0: of all.

        Raises:
            ViqError: images, grids and places in `input_ids` do not agree.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        of_loss = {k: kwargs.pop(k) for k in ("num_items_in_batch", "shift_labels") if k in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            codes=codes,
            pixel_values=pixel_values,
            image_grid_hw=image_grid_hw,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_BLE = outputs.last_hidden_state
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else None
            hidden_BLE = hidden_BLE[:, logits_to_keep if kept is None else kept]
        logits, loss = self.logits_of(hidden_BLE), None
        if labels is not None:
            size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **of_loss)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            **{CACHE: outputs.get(CACHE)},
        )
        return result.to_tuple() if return_dict is False else result

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Logits (.., vocabulary) of hidden states (.., E)."""
        return final_logits(self.lm_head(hidden), self.config.text_config)

    def score(
        self,
        features_TC: Tensor | None,
        grids_hw: Sequence[Grid],
        ids_L: Tensor,
        targets_L: Tensor,
        lengths: Sequence[int],
    ) -> AnswerScore:
        """Score the answers of packed conversations (`score_answers`): what training runs."""
        language = self.language_model
        inputs_LE = visual_inputs(language, self.projector, ids_L, features_TC, grids_hw)
        return score_answers(language, self.logits_of, inputs_LE, targets_L, lengths)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]  # all but ids are named
        self,
        inputs: Tensor | None = None,
        *,
        codes: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answers, as in transformers; a batch is padded on the left.

        Images become input vectors once, before the first step, so beams and several answers a
        question need nothing special. Where candidates are looked up in the prompt or come from
        another model, they are read together with the prompt, and images stay codes.

        Raises:
            ViqError: an assistant that reads no images beside a prompt with some.
        """
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        visual: dict[str, Any] = {"codes": codes, "image_grid_hw": image_grid_hw}
        if codes is None and pixel_values is not None and image_grid_hw is not None:
            grids = [(rows, cols) for rows, cols in image_grid_hw.tolist()]
            visual["codes"] = self.model.codes_of(pixel_values, grids)
        if ids is not None and kwargs.get("inputs_embeds") is None:
            if asks_for_candidates(self, kwargs):
                check_candidates(self, kwargs.get("assistant_model"), visual["codes"] is not None)
                self.model.embed(ids, **visual)  # for its errors
                kwargs |= {name: value for name, value in visual.items() if value is not None}
            else:
                kwargs["inputs_embeds"] = self.model.embed(ids, **visual)
        return super().generate(ids, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; images are read with the prompt and are in the cache after that."""
        own: Any = super()
        visual = {name: kwargs.pop(name, None) for name in ("codes", "image_grid_hw")}
        prepared = own.prepare_inputs_for_generation(
            input_ids,
            *args,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if (ids := prepared.pop("input_ids", None)) is None:
            return prepared
        read = is_first_iteration or not kwargs.get("use_cache", True)
        if read and visual["codes"] is not None:
            prepared["inputs_embeds"] = self.model.embed(ids, **visual, more_places=True)
        else:  # also what stands for an image is a word if the model itself has written it
            prepared["inputs_embeds"] = self.get_input_embeddings()(ids)
        return prepared

    # Parts under the names that tools look for

    @property
    def language_model(self) -> Any:
        return self.model.language_model

    @property
    def embedder(self) -> CodeEmbedder:
        return self.model.embedder

    @property
    def projector(self) -> MergeProjector:
        return self.model.projector

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """As `ViQModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def codes_of(self, pixel_values_TD: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """As `ViQModel.codes_of`."""
        return self.model.codes_of(pixel_values_TD, grids_hw)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def set_visual_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """As `ViQModel.set_visual_tokenizer`."""
        self.model.set_visual_tokenizer(tokenizer)

    def require(self, fingerprint: str) -> None:
        """As `ViQModel.require`."""
        self.model.require(fingerprint)
