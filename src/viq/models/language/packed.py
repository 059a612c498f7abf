"""Many samples in one sequence of a Hugging Face causal language model, none of which sees another.

Hugging Face keeps packed samples apart with a mask of L x L, or by positions that restart, which
holds only without a mask and without a cache and then builds that mask all the same: 16k tokens
make 256 million entries. Here each sample has its own attention (`viq.models.layers.attention`):
one variable-length kernel on CUDA, a loop elsewhere, and nothing quadratic in L.

    use_packed_attention(language)  # once; everything else stays as it was
    hidden_LE = packed_hidden(language, inputs_LE, lengths)

Attention dropout, which no kernel for packed samples has, is left out. `check_packed` tells before
training what of a model could not be packed at all: windows shorter than a sample, and whatever
its attention computes beside the softmax.

The model still generates, with caches and padding masks, as with "sdpa". Gradient checkpointing,
adapters of peft and `save_pretrained` are not affected.

L = tokens of the packed sequence, E = width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from viq.core.errors import first_line
from viq.core.types import ViqError
from viq.models.layers.attention import packed_attention

PACKED = "viq_packed"  # name of the attention in transformers' registry
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
_ROUNDING = 0.05  # relative; half precision is off by a hundredth


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


def packed_hidden(language: Any, inputs_LE: Tensor, lengths: Sequence[int]) -> Tensor:
    """Last hidden states (L, E) of packed samples; positions restart with each.

    Args:
        language: a model that `use_packed_attention` has seen.
        lengths: tokens of each sample, in order; they add up to L.
    """
    if sum(lengths) != len(inputs_LE):
        raise ValueError(f"lengths add up to {sum(lengths)} tokens, not to {len(inputs_LE)}")
    positions_L = torch.cat([torch.arange(length) for length in lengths]).to(inputs_LE.device)
    output = base_of(language).get_decoder()(
        inputs_embeds=inputs_LE[None],
        position_ids=positions_L[None],
        # transformers passes a mask of four dimensions on as it is, and `_attention` ignores it;
        # without one it would build L x L.
        attention_mask=inputs_LE.new_zeros(1, 1, 1, 1),
        use_cache=False,
        lengths=tuple(lengths),
    )
    return output.last_hidden_state[0]


def check_packed(language: Any, longest: int) -> list[str]:
    """See that a model gives packed samples what it gives each alone; lines on what is left out.

    Args:
        language: a model that `use_packed_attention` has seen.
        longest: tokens of a sample, at most.

    Raises:
        ViqError: it does not, and could not be trained so.
    """
    base = base_of(language)
    name, window = base.config.model_type, _window(base.config)
    if window is not None and window < longest:
        raise ViqError(
            f"{name}: sees only {window} tokens back in some layers, but samples have up to "
            f"{longest}: set chat.max_length to {window}, or give another language model"
        )
    try:
        apart = _differs(base)
    except Exception as error:  # models of others fail in ways of their own
        raise ViqError(
            f"{name}: its attention cannot be packed ({first_line(error)}); give another "
            "language model"
        ) from None
    if not apart < _ROUNDING:
        raise ViqError(
            f"{name}: packed samples come out otherwise than alone, so its attention is not the "
            "plain one; give another language model"
        )
    lines = []
    for kind in _DROPOUTS:
        if share := getattr(base.config, kind, None):
            lines.append(f"{name}: {kind} {share} is left out of packed samples")
            setattr(base.config, kind, 0.0)
    return lines


def _window(config: Any) -> int | None:
    """How many tokens back the layer that sees least can see; None if all see everything."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds and not any("full_attention" != kind for kind in kinds):
        return None
    return getattr(config, "sliding_window", None)


@torch.no_grad()
def _differs(base: Any) -> float:
    """Largest difference between two samples packed and alone, relative to their values."""
    embed = base.get_input_embeddings()
    training = base.training
    base.eval()
    try:
        ids = torch.arange(5, device=embed.weight.device) % embed.num_embeddings
        inputs_LE = embed(ids)
        packed_LE = packed_hidden(base, inputs_LE, (3, 2))
        alone = [
            base.get_decoder()(inputs_embeds=part[None], use_cache=False).last_hidden_state[0]
            for part in inputs_LE.split((3, 2))
        ]
        alone_LE = torch.cat(alone).float()
        return float((packed_LE.float() - alone_LE).abs().max() / alone_LE.abs().max())
    finally:
        base.train(training)


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

    if kwargs.get("softcap") is not None:  # some releases of transformers would leave it out
        raise ViqError("attention bounds its scores by a tanh, which fast kernels do not")
    if lengths is None:
        return sdpa_attention_forward(
            module, query_1HLD, key_1HLD, value_1HLD, attention_mask, **kwargs
        )
    if (window := kwargs.get("sliding_window")) and window < max(lengths):
        raise ViqError(
            f"a sample of {max(lengths)} tokens, but attention sees {window} tokens back"
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query_1HLD, key_1HLD, value_1HLD))
    # Under autocast rotary positions give fp32 back, which the fast kernel does not take.
    return packed_attention(q.to(v.dtype), k.to(v.dtype), v, lengths, causal=True)[None], None
