"""How sure a model is of its answers: so that it can say that it does not know.

B = answers of a batch, L = tokens of a prompt, n = new tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

UNKNOWN = "I don't know."


@torch.no_grad()
def generate_with_confidence(model: Any, inputs: Any, **generation: Any) -> tuple[Tensor, Tensor]:
    """What `generate` gives, and how sure the model is of each answer.

    Args:
        model: a causal language model of transformers, also `ViQForConditionalGeneration`.
        inputs: of `generate`, with `input_ids` (B, L).
        generation: other options of `generate`; no beams, whose tokens are not the likeliest ones.

    Returns:
        Tokens (B, L + n); and confidences (B,), float32 in [0, 1]: the geometric mean of the
        probabilities of an answer's tokens, the mark that ends it among them.
    """
    found = model.generate(**inputs, **generation, return_dict_in_generate=True, output_logits=True)
    new_Bn = found.sequences[:, inputs["input_ids"].shape[1] :]
    logs_Bn = model.compute_transition_scores(
        found.sequences, found.logits, normalize_logits=True
    ).float()
    ends = torch.tensor(model.generation_config.eos_token_id, device=new_Bn.device).reshape(-1)
    ended_Bn = torch.isin(new_Bn, ends).cumsum(1)
    before_Bn = torch.cat([torch.zeros_like(ended_Bn[:, :1]), ended_Bn[:, :-1]], 1) == 0
    logs_B = logs_Bn.masked_fill(~before_Bn, 0).sum(1) / before_Bn.sum(1).clamp_min(1)
    return found.sequences, logs_B.exp()
