"""Time the reader of the tokenizer's training on packed conversations, with two attentions.

    PYTHONPATH=src python bench/packed_reader.py --tokens 1024 --tokens 4096

"mask" lets transformers keep conversations apart by an L x L mask; "packed" gives each its own
attention, which is what training does. Forward and backward pass of the small recipe's reader,
one thread, fp32, both in turn; medians, and the loss of each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.models.language.packed import packed_hidden, use_packed_attention
from viq.models.language.vision_language import build_language
from viq.recipes.tokenizer import train_tiny


def masked_hidden(language: torch.nn.Module, inputs_LD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Hidden states where restarting positions alone keep conversations apart."""
    positions_L = torch.cat([torch.arange(length) for length in lengths])
    output = language.get_decoder()(  # type: ignore[operator]
        inputs_embeds=inputs_LD[None], position_ids=positions_L[None], use_cache=False
    )
    return output.last_hidden_state[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, action="append", help="of a pack; again for more")
    parser.add_argument("--length", type=int, default=128, help="tokens of a conversation")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = train_tiny().language
    assert config is not None
    language = build_language(config, config.vocabulary)
    use_packed_attention(language)
    for tokens in asked.tokens or [1024, 4096]:
        lengths = [asked.length] * (tokens // asked.length)
        ids_L = torch.randint(config.vocabulary, (sum(lengths),))

        def step(hidden: Callable[..., Tensor], ids_L: Tensor, lengths: list[int]) -> float:
            hidden_LD = hidden(language, language.get_input_embeddings()(ids_L), lengths)
            loss = F.cross_entropy(language.get_output_embeddings()(hidden_LD), ids_L)
            loss.backward()
            language.zero_grad(set_to_none=True)
            return float(loss.detach())

        ways = {"mask": masked_hidden, "packed": packed_hidden}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        losses = {name: step(hidden, ids_L, lengths) for name, hidden in ways.items()}  # warm-up
        for _ in range(asked.repeats):
            for name, hidden in ways.items():
                begun = time.perf_counter()
                step(hidden, ids_L, lengths)
                spent[name].append(time.perf_counter() - begun)
        median = {name: statistics.median(times) for name, times in spent.items()}
        print(
            f"{sum(lengths)} tokens: mask {median['mask']:.2f} s, packed {median['packed']:.2f} s, "
            f"{median['mask'] / median['packed']:.1f}x; losses {losses['mask']:.6f} and "
            f"{losses['packed']:.6f}"
        )


if __name__ == "__main__":
    main()
