"""What language models do between their last hidden state and their logits.

A linear layer, and in some families a fixed map after it: Cohere, Granite and others scale, Gemma 2
and its like bound the logits by a tanh. The loss of training, a model's own logits and those of its
plain causal model have to agree in it.

L = tokens, E = width of the language model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from viq.core.errors import first_line
from viq.core.types import ViqError

_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_ROUNDING = 0.05  # relative; half precision is off by a hundredth


def final_logits(logits: Tensor, config: Any) -> Tensor:
    """Logits of the linear layer as the language model of a config gives them.

    Args:
        config: of the language model; its `logit_scale`, `logits_scaling` and
            `final_logit_softcapping`, where it has them, say what is done.
    """
    for name in _FACTORS:
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
            break
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits * divisor if config.model_type == "hyperclovax" else logits / divisor
    if (bound := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / bound) * bound
    return logits


@torch.no_grad()
def check_head(language: Any) -> None:
    """See that `final_logits` of a causal language model are its own logits.

    Raises:
        ViqError: they are not: its head does something else, which would be left out.
    """
    name, embed = language.config.model_type, language.get_input_embeddings()
    training = language.training
    language.eval()
    try:
        ids = torch.arange(3, device=embed.weight.device)[None] % embed.num_embeddings
        own = language(input_ids=ids, use_cache=False).logits.float()
        hidden = language.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = final_logits(language.get_output_embeddings()(hidden), language.config).float()
    except Exception as error:  # models of others fail in ways of their own
        raise ViqError(
            f"{name}: cannot be taken apart into a model and its head ({first_line(error)}); give "
            "another language model"
        ) from None
    finally:
        language.train(training)
    if not float((own - ours).abs().max()) <= _ROUNDING * float(own.abs().max()):
        raise ViqError(
            f"{name}: its head is more than a linear layer and the usual scales, which is not "
            "supported; give another language model"
        )
