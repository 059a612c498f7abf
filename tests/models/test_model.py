"""Packing, attention, the bottlenecks, folding, and the parts that golden numbers do not reach."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from viq.core.levels import PRESETS, check_levels
from viq.core.types import grid_of, tile_grid
from viq.image import patches
from viq.image.patches import PatchBatch, lengths_of
from viq.models.layers import attention
from viq.models.tokenizer import presets
from viq.models.tokenizer.fsq import FSQ
from viq.models.tokenizer.quantizer import ProximalBottleneck, QuantizerConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes import tokenizer as recipes

sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


@given(st.lists(sizes, min_size=1, max_size=5))
def test_pack_and_unpatchify_round_trip(shapes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in shapes]
    batch = patches.pack([patches.normalize(image) for image in images])
    assert batch.grids_hw == tuple(grid_of(shape) for shape in shapes)
    parts = batch.patches_TD.split(lengths_of(batch.grids_hw))
    for part, image, shape in zip(parts, images, shapes, strict=True):
        back = patches.denormalize(patches.unpatchify(part, shape))
        assert np.array_equal(back.numpy(), image)


def test_order_of_patches_and_padding() -> None:
    pixels = torch.arange(3 * 17 * 33, dtype=torch.float32).view(3, 17, 33)
    flat = patches.patchify(pixels)
    assert flat.shape == (2 * 3, 3 * 256)
    assert torch.equal(flat[1].view(3, 16, 16), pixels[:, :16, 16:32])  # raster order
    corner = flat[5].view(3, 16, 16)
    assert torch.equal(corner[:, 0, 0], pixels[:, 16, 32])
    assert corner[:, 1:].abs().sum() == 0  # padding is zero: mid-grey
    assert corner[:, :, 1:].abs().sum() == 0


def test_patch_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="describes 6 patches, got 5"):
        PatchBatch(patches_TD=torch.zeros(5, 768), grids_hw=((2, 3),))


@given(rows=st.integers(1, 300), cols=st.integers(1, 300), tile=st.integers(1, 64))
def test_tiles_cover_the_grid_once(rows: int, cols: int, tile: int) -> None:
    seen = np.zeros((rows, cols), int)
    areas = []
    for where in tile_grid((rows, cols), tile):
        seen[where] += 1
        areas.append(seen[where].shape)
    assert (seen == 1).all()
    heights, widths = {a[0] for a in areas}, {a[1] for a in areas}
    assert max(heights | widths) <= tile
    assert max(heights) - min(heights) <= 1  # no slivers
    assert max(widths) - min(widths) <= 1


def naive_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    out, start = torch.empty_like(q), 0
    for n in lengths:
        s = slice(start, start + n)
        scores = torch.einsum("ihd,jhd->hij", q[s], k[s]) / q.shape[-1] ** 0.5
        out[s] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[s])
        start += n
    return out


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [1, 7, 7, 2], [4, 1, 4]])
def test_attention_stays_within_images(lengths: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 8, dtype=torch.float64)
    ours = attention.packed_attention(q, k, v, lengths)
    torch.testing.assert_close(ours, naive_attention(q, k, v, lengths))


def test_attention_refuses_wrong_lengths() -> None:
    x = torch.zeros(5, 1, 8)
    with pytest.raises(ValueError, match="add up to 4 tokens, the sequence has 5"):
        attention.packed_attention(x, x, x, [4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fast twin needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fast_attention_equals_plain(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lengths = [5, 64, 1, 300]
    q, k, v = torch.randn(3, sum(lengths), 4, 64, device="cuda", dtype=dtype)
    fast = attention.varlen_attention(q, k, v, lengths)
    plain = attention.looped_attention(q.float(), k.float(), v.float(), lengths)
    torch.testing.assert_close(fast.float(), plain, rtol=2e-2, atol=2e-2)


@given(st.sampled_from(sorted(PRESETS)), st.data())
def test_fsq_indices_and_codes_are_one_to_one(size: str, data: st.DataObject) -> None:
    fsq = FSQ(PRESETS[size])
    index = torch.tensor(data.draw(st.integers(0, fsq.codebook_size - 1)))
    levels = fsq.levels_of(index)
    assert 0 <= int(levels.min())
    assert all(int(level) < limit for level, limit in zip(levels, fsq.levels, strict=True))
    assert int((levels * torch.tensor(fsq.basis)).sum()) == int(index)
    # The code itself, mapped back before the tanh, quantizes to the same index.
    half_width, offset = torch.tensor(fsq.half_width), torch.tensor(fsq.offset)
    bounded = (fsq.decode(index) * half_width + offset) / torch.tensor(fsq.half)
    z = bounded.clamp(-0.9999, 0.9999).atanh() - torch.tensor(fsq.shift)
    assert int(fsq.indices(z)) == int(index)


def test_fsq_levels_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        check_levels([8, 1])
    with pytest.raises(ValueError, match="16 bits"):
        check_levels([8, 8, 8, 8, 8, 5])
    assert FSQ([8]).decode(torch.arange(8)).tolist() == [[i / 4 - 1] for i in range(8)]


@pytest.mark.parametrize("limit", ["linf", "l2", "tanh", "none"])
def test_proximal_limits(limit: str) -> None:
    config = QuantizerConfig(bottleneck="proximal", proximal_width=6, proximal_limit=limit)  # type: ignore[arg-type]
    bottleneck = ProximalBottleneck(8, config)
    z = torch.randn(10, 4, 6) * 3
    out = bottleneck.bound(z)
    norms = {"linf": out.abs().amax(-1), "l2": out.norm(dim=-1)}
    if limit in norms:
        torch.testing.assert_close(norms[limit], torch.ones(10, 4))
        cosine = torch.nn.functional.cosine_similarity(out, z, dim=-1)
        torch.testing.assert_close(cosine, torch.ones(10, 4))  # the direction is kept
    else:
        assert torch.equal(out, z.tanh() if limit == "tanh" else z)
    assert torch.isfinite(bottleneck.bound(torch.zeros(1, 4, 6))).all()


def test_proximal_model_is_continuous_and_gives_no_codes() -> None:
    model = tiny.tokenizer("proximal")
    batch = patches.pack([torch.zeros(3, 20, 40), torch.ones(3, 16, 16)])
    output = model(batch)
    assert output.codes_TSd.shape == (7, 4, 32)
    assert model.reconstruct(output.features_TC, batch.grids_hw).shape == (7, 768)
    with pytest.raises(ValueError, match="continuous"):
        model.encode(np.zeros((5, 5, 3), np.uint8))


@pytest.mark.parametrize("bottleneck", ["fsq", "proximal"])
def test_folded_equals_unfolded_also_in_gradients(bottleneck: str) -> None:
    head = tiny.tokenizer(bottleneck).double().requires_grad_(True).quantizer
    codes = torch.randn(9, 4, head.bottleneck.project_out.in_features, dtype=torch.float64)
    grads = []
    for merge in (head.merge, head.merge_unfolded):
        head.zero_grad()
        out = merge(codes)
        out.square().sum().backward()
        grads.append([out, head.bottleneck.project_out.weight.grad, head.merge_mlp.fc1.weight.grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_flops_of_the_code_to_feature_path_at_paper_size() -> None:
    with torch.device("meta"):
        head = VisualTokenizer(recipes.g()).quantizer
    c, d = 1536, 6
    mlps = 4 * c * c + 2 * c * c + 3 * 4 * c * c  # after the first map of step 7
    assert head.dequantize_flops(folded=False) == 2 * (4 * d * c + 16 * c * c + mlps)
    assert head.dequantize_flops(folded=True) == 2 * (4 * d * 4 * c + mlps)
    # The code-to-feature path, steps 6 to 9, has 80M parameters (docs/model.md).
    parts = [head.bottleneck.project_out, head.merge_mlp, head.post_mlp, head.post_blocks]
    count = sum(p.numel() for part in parts for p in part.parameters()) + 2 * c
    assert count == pytest.approx(80e6, rel=0.01)


@pytest.mark.parametrize(("name", "trunk"), [("g", 1.16e9), ("so400m", 0.43e9)])
def test_presets_have_the_published_size(name: str, trunk: float) -> None:
    with torch.device("meta"):
        model = VisualTokenizer(presets.MODELS[name]())
    assert sum(p.numel() for p in model.encoder.parameters()) == pytest.approx(trunk, rel=0.03)


def test_slots_never_mix() -> None:
    head = tiny.tokenizer().quantizer
    torch.manual_seed(0)
    slots = torch.randn(12, 4, 32)
    for block in head.bottleneck.blocks:
        torch.nn.init.normal_(block.attn.proj.weight)  # zero at the start of training
    changed = slots.clone()
    changed[:, 2] += 1
    before, after = (head.bottleneck(x, [(3, 4)]) for x in (slots, changed))
    moved = (before - after).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, True, False]


@settings(max_examples=20)
@given(st.lists(sizes, min_size=2, max_size=4))
def test_packing_changes_nothing_but_rounding(shapes: list[tuple[int, int]]) -> None:
    model = tiny.tokenizer()
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, h, w, generator=generator) * 2 - 1 for h, w in shapes]
    packed = model(patches.pack(images))
    alone = [model(patches.pack([image])) for image in images]
    torch.testing.assert_close(
        packed.z_TSd, torch.cat([a.z_TSd for a in alone]), rtol=1e-4, atol=1e-5
    )


def test_gradients_reach_every_part() -> None:
    model = tiny.tokenizer().requires_grad_(True)
    for parameter in model.parameters():  # residual branches start at zero and block gradients
        torch.nn.init.normal_(parameter, std=0.1)
    batch = patches.pack([torch.rand(3, 40, 30), torch.rand(3, 20, 50)])
    output = model(batch)
    pixels = model.reconstruct(output.features_TC, batch.grids_hw)
    pooled = model.pooled(output.features_TC, batch.grids_hw)
    (pixels.square().sum() + pooled.square().sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []
