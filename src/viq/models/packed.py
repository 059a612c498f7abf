"""Many samples in one sequence of a Hugging Face causal language model, none of which sees another.

Hugging Face keeps packed samples apart with a mask of L x L, or by positions that restart, which
holds only without a mask and without a cache and then builds that mask all the same: 16k tokens
make 256 million entries. Here each sample has its own attention (`viq.nn.attention`): one
variable-length kernel on CUDA, a loop elsewhere, and nothing quadratic in L.

    use_packed_attention(language)  # once; everything else stays as it was
    hidden_LD = packed_hidden(language, inputs_LD, lengths)

The model still generates, with caches and padding masks, as with "sdpa". Gradient checkpointing,
adapters of peft and `save_pretrained` are not affected.

L = tokens of the packed sequence, D = width, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from viq.nn.attention import packed_attention

PACKED = "viq_packed"  # name of the attention in transformers' registry


def use_packed_attention(language: Any) -> None:
    """Give a causal language model, also one under adapters, the attention `packed_hidden` needs.

    Raises:
        ValueError: a model whose attention is not exchangeable in transformers.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, _attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    base_of(language).set_attn_implementation(PACKED)


def packed_hidden(language: Any, inputs_LD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Last hidden states (L, D) of packed samples; positions restart with each.

    Args:
        language: a model that `use_packed_attention` has seen.
        lengths: tokens of each sample, in order; they add up to L.
    """
    if sum(lengths) != len(inputs_LD):
        raise ValueError(f"lengths add up to {sum(lengths)} tokens, not to {len(inputs_LD)}")
    positions_L = torch.cat([torch.arange(length) for length in lengths]).to(inputs_LD.device)
    output = base_of(language).get_decoder()(
        inputs_embeds=inputs_LD[None],
        position_ids=positions_L[None],
        # transformers passes a mask of four dimensions on as it is, and `_attention` ignores it;
        # without one it would build L x L.
        attention_mask=inputs_LD.new_zeros(1, 1, 1, 1),
        use_cache=False,
        lengths=tuple(lengths),
    )
    return output.last_hidden_state[0]


def checkpoint_layers(language: Any) -> None:
    """Keep only the inputs of each layer for the backward pass: less memory, a third more time."""
    new = getattr(language, "activation_checkpointing_enable", None)  # before 5.23: the old name
    (new or language.gradient_checkpointing_enable)()


def base_of(language: Any) -> Any:
    """The Hugging Face model itself, taken out of peft's wrapper."""
    return language.get_base_model() if hasattr(language, "get_base_model") else language


def _attention(
    module: Any,
    query_1HLD: Tensor,
    key_1HLD: Tensor,
    value_1HLD: Tensor,
    attention_mask: Tensor | None,
    lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; without `lengths` it is "sdpa"."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if lengths is None:
        return sdpa_attention_forward(
            module, query_1HLD, key_1HLD, value_1HLD, attention_mask, **kwargs
        )
    if kwargs.get("sliding_window") or kwargs.get("dropout"):
        raise ValueError("packed attention has neither a sliding window nor dropout")
    q, k, v = (x[0].transpose(0, 1) for x in (query_1HLD, key_1HLD, value_1HLD))
    # Under autocast rotary positions give fp32 back, which the fast kernel does not take.
    return packed_attention(q.to(v.dtype), k.to(v.dtype), v, lengths, causal=True)[None], None
