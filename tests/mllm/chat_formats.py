"""Tiny random language models with tokenizers in the instruct formats of others, for tests."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!<>|_/[]{}()-:\"'\n"

# The formats as their models use them, in templates of our own: a beginning, turns, a system text
# in a place of its own, in the last question or refused, blanks cut away or kept.
LLAMA = """{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] +
'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{- raise_exception('no system role') }}{% endif %}{% for m in messages %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n'
 + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
PHI = """{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}
{%- endfor %}{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"""
MISTRAL = """{{ bos_token }}{% set told = namespace(text='') %}{% for m in messages %}
{%- if m['role'] == 'system' %}{% set told.text = m['content'] + '\n\n' %}
{%- elif m['role'] == 'user' %}{{ '[INST] ' + (told.text if loop.index0 > messages | length - 3
 else '') + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}
{%- endfor %}"""
SMOLLM = """{% for m in messages %}{% if loop.first and m['role'] != 'system' %}
{{- '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# name: template, first token, last token, others
FORMATS: dict[str, tuple[str, str | None, str, tuple[str, ...]]] = {
    "llama": (LLAMA, "<|begin_of_text|>", "<|end_of_text|>",
              ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "phi": (PHI, None, "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "mistral": (MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]")),
    "smollm": (SMOLLM, None, "<|im_end|>", ("<|im_start|>",)),
}  # fmt: skip


def tokenizer(name: str) -> Any:
    """One token a letter; spaces are joined to what follows in those of Gemma and Mistral."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    template, first, last, others = FORMATS[name]
    special = [token for token in (first, last, *others) if token]
    inner = Tokenizer(models.BPE())
    if name in ("gemma", "mistral"):
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        inner.decoder = decoders.Metaspace(prepend_scheme="never")
        alphabet = [*LETTERS.replace(" ", ""), "\u2581"]
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["What is this? A red cup. user assistant model"] * 3, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=first, eos_token=last)
    found.chat_template = template
    return found


def language(name: str, vocabulary: int, **changes: Any) -> Any:
    """A causal language model of that kind."""
    import transformers as t

    kinds: dict[str, tuple[Any, Any]] = {
        "llama": (t.LlamaConfig, t.LlamaForCausalLM),
        "gemma": (t.Gemma2Config, t.Gemma2ForCausalLM),
        "phi": (t.Phi3Config, t.Phi3ForCausalLM),
        "mistral": (t.MistralConfig, t.MistralForCausalLM),
        "smollm": (t.LlamaConfig, t.LlamaForCausalLM),
        "cohere": (t.CohereConfig, t.CohereForCausalLM),
        "granite": (t.GraniteConfig, t.GraniteForCausalLM),
    }
    config, model = kinds[name]
    if name == "gemma":
        changes = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4096} | changes
    torch.manual_seed(0)
    return model(
        config(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=None, bos_token_id=0,
            eos_token_id=1, **changes,
        )
    ).eval()  # fmt: skip
