"""Parts of the tokenizer against other ways to do the same: attention, folding, the trunk.

Alternatives are given their best case: what they need beyond our packed sequence (padding, masks)
is prepared outside the clock. Each part also reports how far the results of its variants differ.

T = patches of all images, n = images, L = patches of the longest, N = heads, c = values of a
head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from viq.core.measure import compare
from viq.core.types import CODES_PER_PATCH, Grid
from viq.image.patches import PatchBatch, lengths_of
from viq.models.layers.attention import looped_attention, varlen_attention
from viq.models.tokenizer.encoder import Encoder, EncoderConfig
from viq.models.tokenizer.quantizer import QuantizerConfig, QuantizerHead

BUCKET = 8  # images of similar length that `naflex_bucketed` pads together


def attention(
    heads: int, head_dim: int, lengths: Sequence[int], device: torch.device, repeats: int
) -> dict[str, Any]:
    """The loop over images against a padded batch and a block-diagonal mask.

    Forward alone, and forward with the gradients of q, k and v. On CUDA in bf16, and with the
    variable-length kernel; else in fp32.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    seed = torch.Generator().manual_seed(0)
    shape = (3, sum(lengths), heads, head_dim)
    qkv = torch.randn(shape, generator=seed).to(device, dtype)
    packed = list(qkv.unbind())
    padded = [_pad(x, lengths).transpose(1, 2).contiguous() for x in packed]  # n, N, L, c
    joined = [x.transpose(0, 1)[None].contiguous() for x in packed]  # 1, N, T, c
    counts = torch.tensor(lengths, device=device)
    keys_nL = torch.arange(max(lengths), device=device) < counts[:, None]
    image_T = torch.arange(len(lengths), device=device).repeat_interleave(counts)
    blocks_TT = image_T[:, None] == image_T

    def looped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return looped_attention(q, k, v, lengths)

    def padding(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys_nL[:, None, None])

    def block_diagonal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=blocks_TT[None, None])

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, lengths)

    ways: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "looped": (looped, packed),
        "padded": (padding, padded),
        "block_diagonal": (block_diagonal, joined),
    }
    if cuda:
        ways["varlen"] = (varlen, packed)

    def packed_again(name: str) -> Tensor:
        way, inputs = ways[name]
        out = way(*inputs)
        if name == "padded":
            return out.transpose(1, 2)[keys_nL]
        return out[0].transpose(0, 1) if name == "block_diagonal" else out

    def forward(name: str) -> Callable[[], Tensor]:
        way, inputs = ways[name]
        return lambda: way(*inputs)

    def both(name: str) -> Callable[[], Any]:
        way, inputs = ways[name]
        leaves = [x.detach().requires_grad_() for x in inputs]
        upstream = torch.ones_like(way(*inputs))
        return lambda: torch.autograd.grad(way(*leaves), leaves, upstream)

    with torch.inference_mode():
        outputs = {name: packed_again(name) for name in ways}
        differences = _differences(outputs)
        times = compare({name: forward(name) for name in ways}, repeats)
    return {
        "heads": heads,
        "head_dim": head_dim,
        "dtype": str(dtype).removeprefix("torch."),
        "lengths": list(lengths),
        "tokens": sum(lengths),
        "tokens_padded": max(lengths) * len(lengths),
        "forward": times,
        "forward_backward": compare({name: both(name) for name in ways}, repeats),
        "max_difference": differences,
    }


def folding(
    name: str,
    width: int,
    config: QuantizerConfig,
    patches: Sequence[int],
    device: torch.device,
    repeats: int,
) -> dict[str, Any]:
    """Codes to features with the two adjacent linear maps folded into one, against the plain twin.

    FLOPs are those a patch; folding itself, paid once a call, is in the times but not in them.
    """
    with torch.device("meta"):  # at the width of g the parts not used here take gigabytes
        head = QuantizerHead(width, replace(config, pre_depth=0, slot_depth=0))
    del head.expand_mlp, head.slot_mlp, head.bottleneck.project_in
    head.to_empty(device=device).eval().requires_grad_(False)
    seed = torch.Generator(device).manual_seed(0)
    for parameter in head.parameters():  # whatever was in memory may be denormal, and slow
        nn.init.normal_(parameter, std=width**-0.5, generator=seed)
    dims = head.bottleneck.project_out.in_features
    times, difference = {}, 0.0
    with torch.inference_mode():
        for count in patches:
            shape = (count, CODES_PER_PATCH, dims)
            codes_TSd = torch.rand(shape, generator=seed, device=device) * 2 - 1
            merges = {"folded": head.merge, "unfolded": head.merge_unfolded}
            outputs = {way: merge(codes_TSd) for way, merge in merges.items()}
            difference = max(difference, _differences(outputs)["unfolded"])
            restores = {way: _restoring(head, merges[way], codes_TSd) for way in merges}
            times[str(count)] = {
                "restore": compare(restores, repeats),
                "merge": compare({w: _calling(m, codes_TSd) for w, m in merges.items()}, repeats),
            }
    flops = {"folded": head.dequantize_flops(folded=True), "unfolded": head.dequantize_flops(False)}
    return {
        "name": name,
        "width": width,
        "dims": dims,
        "flops_per_patch": flops,
        "flops_ratio": flops["unfolded"] / flops["folded"],
        "patches": times,
        "max_difference": difference,
    }


def trunk_vs_naflex(
    config: EncoderConfig, grids_hw: Sequence[Grid], device: torch.device, repeats: int
) -> dict[str, Any]:
    """Our packed trunk against the NaFlex tower of transformers, on the same patches and weights.

    Cutting images into patches is outside the clock on both sides; so are padding and, for
    `naflex_bucketed`, sorting by length into groups of 8 that are padded apart. The two compute
    the same function except for the tower's final norm, which is applied to ours before comparing.

    Raises:
        ImportError: transformers is not installed.
    """
    encoder = Encoder(config).to(device).eval().requires_grad_(False)
    # The two filters that resize the position table differ (antialias), but agree on a constant.
    encoder.position.copy_(encoder.position[0, 0].clone().expand_as(encoder.position))
    tower = naflex_twin(encoder)
    seed = torch.Generator().manual_seed(0)
    shape = (sum(lengths_of(grids_hw)), encoder.patch_embed.in_features)
    patches_TD = (torch.rand(shape, generator=seed) * 2 - 1).to(device)
    batch = PatchBatch(patches_TD=patches_TD, grids_hw=tuple(grids_hw))
    whole = naflex_inputs(batch)
    order = sorted(range(len(grids_hw)), key=lambda i: lengths_of(grids_hw)[i])
    buckets = [naflex_inputs(batch, order[i : i + BUCKET]) for i in range(0, len(order), BUCKET)]
    with torch.inference_mode():
        ours = F.layer_norm(encoder(batch), (config.width,), eps=1e-6)
        theirs = tower(**whole).last_hidden_state[whole["pixel_attention_mask"].bool()]
        differences = _differences({"viq": ours, "naflex": theirs})
        del ours, theirs
        times = compare(
            {
                "viq": lambda: encoder(batch),
                "naflex": lambda: tower(**whole),
                "naflex_bucketed": lambda: [tower(**bucket) for bucket in buckets],
            },
            repeats,
        )

    def slots(inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, int]:
        masks = [each["pixel_attention_mask"] for each in inputs]
        return {
            "patches": sum(int(mask.sum()) for mask in masks),
            "patches_computed": sum(mask.numel() for mask in masks),
        }

    return {
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "mlp_width": config.mlp_width,
        "images": len(grids_hw),
        "repeats": repeats,
        "work": {
            "viq": {"patches": len(patches_TD), "patches_computed": len(patches_TD)},
            "naflex": slots([whole]),
            "naflex_bucketed": slots(buckets),
        },
        "parameters": {"viq": _parameters(encoder), "naflex": _parameters(tower)},
        "times": times,
        "max_difference": differences,
    }


def naflex_twin(encoder: Encoder) -> Any:
    """`Siglip2VisionModel` of transformers with the weights of `encoder`, in eval mode.

    The same function up to its final norm, as long as no image has fewer rows or columns than the
    position table: shrinking the table it also smooths it, which ours does not.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    ours = encoder.config
    config = Siglip2VisionConfig(
        hidden_size=ours.width,
        intermediate_size=ours.mlp_width,
        num_hidden_layers=ours.depth,
        num_attention_heads=ours.heads,
        patch_size=ours.patch_size,
        num_patches=ours.position_grid**2,  # the table; it does not limit the size of an image
        hidden_act="gelu",  # ours; its default is the tanh approximation
        vision_use_head=False,
    )
    config._attn_implementation = "sdpa"
    weights = encoder.state_dict()
    copied = {
        "embeddings.patch_embedding.weight": weights["patch_embed.weight"],
        "embeddings.patch_embedding.bias": weights["patch_embed.bias"],
        "embeddings.position_embedding.weight": weights["position"].flatten(0, 1),
        "post_layernorm.weight": torch.ones(ours.width),
        "post_layernorm.bias": torch.zeros(ours.width),
    }
    names = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for i in range(ours.depth):
        layer, block = f"encoder.layers.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            for mine, its in names.items():
                copied[f"{layer}.{its}.{kind}"] = weights[f"{block}.{mine}.{kind}"]
            qkv = weights[f"{block}.attn.qkv.{kind}"].chunk(3)
            for letter, values in zip("qkv", qkv, strict=True):
                copied[f"{layer}.self_attn.{letter}_proj.{kind}"] = values
    with encoder.position.device:  # initial values of a large tower take a CPU long
        tower: Any = Siglip2VisionModel(config)
    tower.load_state_dict(copied, strict=True)
    return tower.to(encoder.position).eval().requires_grad_(False)  # its device and dtype


def naflex_inputs(batch: PatchBatch, which: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Arguments of the NaFlex tower for the images `which` (default all) of a packed batch."""
    which = range(len(batch.grids_hw)) if which is None else which
    images = batch.patches_TD.split(lengths_of(batch.grids_hw))
    device = batch.patches_TD.device
    shapes_n2 = torch.tensor([batch.grids_hw[i] for i in which], device=device)
    pixels_nLD = pad_sequence([images[i] for i in which], batch_first=True)
    mask_nL = torch.arange(pixels_nLD.shape[1], device=device) < shapes_n2.prod(1, keepdim=True)
    return {
        "pixel_values": pixels_nLD,
        "pixel_attention_mask": mask_nL.int(),
        "spatial_shapes": shapes_n2,
    }


def _pad(x_T: Tensor, lengths: Sequence[int]) -> Tensor:
    return pad_sequence(list(x_T.split(list(lengths))), batch_first=True)


def _differences(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of each output to the first."""
    first, *others = outputs.items()
    return {name: float((out - first[1]).abs().max()) for name, out in others}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _calling(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: function(x)


def _restoring(
    head: QuantizerHead, merge: Callable[[Tensor], Tensor], codes_TSd: Tensor
) -> Callable[[], Tensor]:
    return lambda: head.refine(merge(codes_TSd))
