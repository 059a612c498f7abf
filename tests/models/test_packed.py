"""Packed samples of a language model: each is as if alone; caches work as before."""

import pytest
import torch

from viq.models.language.packed import PACKED, packed_hidden, use_packed_attention
from viq.models.language.vision_language import AdapterConfig, add_adapters
from viq.models.layers.attention import _ends, looped_attention

transformers = pytest.importorskip("transformers")
LENGTHS = (5, 1, 7, 7)
# peft and transformers still call their own names that were renamed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def language(heads: int = 4, shared: int = 2, implementation: str = PACKED):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=shared,
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    if implementation == PACKED:
        use_packed_attention(model)
    else:
        model.set_attn_implementation(implementation)
    return model


def alone(model, ids: torch.Tensor) -> torch.Tensor:
    return model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("shared", [4, 2])
def test_packed_equals_alone(shared: int) -> None:
    ids = torch.randint(50, (sum(LENGTHS),))
    plain = language(shared=shared, implementation="eager")
    expected = torch.cat([alone(plain, part) for part in ids.split(list(LENGTHS))])
    model = language(shared=shared)
    found = packed_hidden(model, model.model.embed_tokens(ids), LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_sample_sees_another() -> None:
    model = language()
    inputs = torch.randn(sum(LENGTHS), 32, requires_grad=True)
    model.train()
    model.gradient_checkpointing_enable()
    hidden = packed_hidden(model, inputs, LENGTHS)
    hidden[6 + 2].sum().backward()  # the third token of the third sample
    assert inputs.grad is not None
    seen = inputs.grad.abs().sum(1) > 0
    assert seen.nonzero().flatten().tolist() == [6, 7, 8]


def test_no_mask_of_the_whole_sequence_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language()
    from transformers.masking_utils import AttentionMaskInterface

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a mask was built")

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, PACKED, refuse)
    packed_hidden(model, torch.randn(sum(LENGTHS), 32), LENGTHS)


def test_mixed_precision_reaches_the_kernel_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    from viq.models.language import packed

    seen = []

    def spy(q, k, v, lengths, *, causal):
        seen.append((q.dtype, k.dtype, v.dtype, causal))
        return looped_attention(q, k, v, lengths, causal=causal)

    monkeypatch.setattr(packed, "packed_attention", spy)
    with torch.autocast("cpu", torch.bfloat16):
        packed_hidden(language(), torch.randn(sum(LENGTHS), 32), LENGTHS)
    assert set(seen) == {(torch.bfloat16,) * 3 + (True,)}


def test_training_in_half_on_a_cpu_is_that_of_float32_rounded() -> None:
    q, k, v = (torch.randn(sum(LENGTHS), 2, 8).bfloat16().requires_grad_() for _ in range(3))
    wide = q_wide, k_wide, v_wide = tuple(x.detach().float().requires_grad_() for x in (q, k, v))
    gradient = torch.randn(sum(LENGTHS), 2, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = looped_attention(q, k, v, LENGTHS, causal=True)
    found.backward(gradient)
    wanted = looped_attention(q_wide, k_wide, v_wide, LENGTHS, causal=True)
    wanted.backward(gradient.float())
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted.bfloat16())
    for x, w in zip((q, k, v), wide, strict=True):
        assert x.grad is not None and w.grad is not None
        assert torch.equal(x.grad, w.grad.bfloat16())


def test_the_model_still_generates() -> None:
    ids = torch.tensor([[0, 0, 7, 8, 9], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    said = [
        language(implementation=name).generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        for name in ("eager", PACKED)
    ]
    assert said[0].tolist() == said[1].tolist()


def test_adapters_and_bad_lengths() -> None:
    pytest.importorskip("peft")
    model = add_adapters(language(implementation="sdpa"), AdapterConfig(rank=2, dropout=0.0))
    use_packed_attention(model)
    inputs = torch.randn(sum(LENGTHS), 32)
    assert packed_hidden(model, inputs, LENGTHS).shape == inputs.shape
    with pytest.raises(ValueError, match="add up to 19"):
        packed_hidden(model, inputs, (*LENGTHS[:-1], 6))


def test_varlen_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is only on CUDA: here a twin stands in its place and reads what it is given."""
    from torch.nn.attention import varlen

    from viq.models.layers.attention import varlen_attention

    def twin(q, k, v, ends, ends_k, longest, longest_k, *, window_size):
        assert ends.dtype == torch.int32 and ends is ends_k and longest == longest_k == 7
        assert q.shape == k.shape == v.shape and window_size in ((-1, -1), (-1, 0))
        return looped_attention(q, k, v, ends.diff().tolist(), causal=window_size[1] == 0)

    monkeypatch.setattr(varlen, "varlen_attn", twin)
    q, k, v = (torch.randn(sum(LENGTHS), heads, 8) for heads in (4, 2, 2))
    for causal in (False, True):
        torch.testing.assert_close(
            varlen_attention(q, k, v, LENGTHS, causal=causal),
            looped_attention(q, k, v, LENGTHS, causal=causal),
        )
    assert _ends(LENGTHS, q.device).tolist() == [0, 5, 6, 13, 20]
