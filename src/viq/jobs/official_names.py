"""Names and shapes of the official release, mapped to ours. No file is read here.

C = width. The official model keeps the tokenizer in one flat namespace; ours says which part a
tensor belongs to. Nothing is transposed: only the position grid and the patch kernel are reshaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from viq.models.vision.siglip import TIMM_NAMES, reshaped

# Official prefix -> ours, first match wins. {n}, {n-1}, {n-2} shift a block number.
_RULES: tuple[tuple[str, str], ...] = (
    *TIMM_NAMES,
    (r"fusion_block\.vq_low_preprocess_layers\.", "quantizer.pre_blocks."),
    (r"fusion_block\.vq_low_pre_token_shuffle_head\.", "quantizer.expand_mlp."),
    (r"fusion_block\.vq_low_post_token_shuffle_head\.", "quantizer.slot_mlp."),
    (r"fusion_block\.vq_low\.fsq_pre_attn\.", "quantizer.bottleneck.blocks."),
    (r"fusion_block\.vq_low\.project_(in|out)\.", r"quantizer.bottleneck.project_\1."),
    (r"fusion_block\.vq_low_inverse_token_shuffle_head\.", "quantizer.merge_mlp."),
    (r"fusion_block\.vq_low_postprocess_layers\.0\.", "quantizer.post_mlp."),
    (r"fusion_block\.vq_low_postprocess_layers\.(\d+)\.", "quantizer.post_blocks.{-1}."),
    (r"fusion_block\.vq_low_norm_trick_post_quantize_affine_weight$", "quantizer.post_scale"),
    (r"fusion_block\.vq_low_norm_trick_post_quantize_affine_bias$", "quantizer.post_shift"),
    (r"vae_preprocess_layers\.0\.", "latent_head.mlp."),
    (r"vae_preprocess_layers\.1\.", "latent_head.norm."),
    (r"vae_preprocess_layers\.(\d+)\.", "latent_head.blocks.{-2}."),
    (r"vae_head\.conv_norm_out\.", "latent_head.group_norm."),
    (r"vae_head\.conv_out\.", "latent_head.conv."),
    # embedder.pth and index_drawer.pth name the code-to-feature path differently
    (r"projector_1\.", "quantizer.bottleneck.project_out."),
    (r"projector_2\.", "quantizer.merge_mlp."),
    (r"projector_3\.0\.", "quantizer.post_mlp."),
    (r"projector_3\.(\d+)\.", "quantizer.post_blocks.{-1}."),
    (r"_weight$", "quantizer.post_scale"),
    (r"_bias$", "quantizer.post_shift"),
)
VAE_PREFIX = "vae_head.vae."


def rename(key: str) -> str | None:
    """Our name of an official tensor; None if it has no place in our model."""
    for pattern, ours in _RULES:
        match = re.match(pattern, key)
        if match:
            shift = re.search(r"\{(-\d)\}", ours)
            if shift:
                number = int(match.group(1)) + int(shift.group(1))
                ours = ours.replace(shift.group(0), str(number))
            name = match.expand(ours) + key[match.end() :]
            return name.replace("decrease_dim", "decrease").replace("increase_dim", "increase")
    return None


def convert_weights(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of official tensors; tensors without a place here are left out."""
    named = {rename(key): tensor for key, tensor in official.items()}
    return {name: reshaped(name, tensor) for name, tensor in named.items() if name}
