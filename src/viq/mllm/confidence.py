"""How sure a model is of its answers: so that it can say that it does not know.

B = answers of a batch, L = tokens of a prompt, n = new tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from viq.mllm.assisted import asks_for_candidates

UNKNOWN = "I don't know."


@torch.no_grad()
def generate_with_confidence(model: Any, inputs: Any, **generation: Any) -> tuple[Tensor, Tensor]:
    """What `generate` gives, and how sure the model is of each answer.

    Logits are kept for one step only, (B, V), not for the whole answer; but where another source
    proposes words (`viq.mllm.assisted`), which is for one answer at a time.

    Args:
        model: a causal language model of transformers, also `ViQForConditionalGeneration`.
        inputs: of `generate`, with `input_ids` (B, L).
        generation: other options of `generate`; no beams, whose tokens are not the likeliest ones.

    Returns:
        Tokens (B, L + n); and confidences (B,), float32 in [0, 1]: the geometric mean of the
        probabilities of an answer's tokens, the mark that ends it among them.
    """
    prompt = inputs["input_ids"].shape[1]
    if asks_for_candidates(model, generation):
        found = model.generate(
            **inputs, **generation, return_dict_in_generate=True, output_logits=True
        )
        ids = found.sequences
        logs_Bn = model.compute_transition_scores(ids, found.logits, normalize_logits=True)
    else:
        steps: list[Tensor] = []
        ids = model.generate(**inputs, **generation, custom_generate=_sampling(steps))
        logs_Bn = torch.cat(steps, 1)[:, : ids.shape[1] - prompt]
    new_Bn, logs_Bn = ids[:, prompt:], logs_Bn.float()
    ends = torch.tensor(model.generation_config.eos_token_id, device=new_Bn.device).reshape(-1)
    ended_Bn = torch.isin(new_Bn, ends).cumsum(1)
    before_Bn = torch.cat([torch.zeros_like(ended_Bn[:, :1]), ended_Bn[:, :-1]], 1) == 0
    logs_B = logs_Bn.masked_fill(~before_Bn, 0).sum(1) / before_Bn.sum(1).clamp_min(1)
    return ids, logs_B.exp()


class _Logits(LogitsProcessor):
    """Keeps what the model says of the next token, before penalties and temperature."""

    def __init__(self) -> None:
        self.last_BV = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.last_BV = scores
        return scores


class _LogProbabilities(StoppingCriteria):
    """Lists the log-probabilities (B, 1) of each token when it has been chosen; stops none."""

    def __init__(self, logits: _Logits, steps: list[Tensor]) -> None:
        self._logits, self._steps = logits, steps

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self._steps.append(self._logits.last_BV.log_softmax(-1).gather(1, input_ids[:, -1:]))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _sampling(steps: list[Tensor]) -> Callable[..., Any]:
    """The loop of `generate`, greedy or drawn, that also lists log-probabilities."""

    def sample(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        **options: Any,
    ) -> Any:
        # First of all processors, which `generate` lets nobody be by its own argument.
        logits = _Logits()
        processors = LogitsProcessorList([logits, *logits_processor])
        criteria = StoppingCriteriaList([*stopping_criteria, _LogProbabilities(logits, steps)])
        return model._sample(input_ids, processors, criteria, **options)

    return sample
