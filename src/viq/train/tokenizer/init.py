"""Initial weights for training from scratch.

PyTorch's default draws a linear layer with a variance of 1/(3*fan_in). Eight linear maps in a
row without a residual path, as in the quantizer head, then shrink the signal by orders of
magnitude: at step 200 such a model still paints mean colours. Here every map keeps the variance,
and every residual branch starts at zero, so that the deep parts begin as the identity. Pixels
enter and leave through the cosine transform, each frequency near the amplitude that it has in
natural pictures; otherwise mean colour drowns all detail for the first hundreds of steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from viq.image.patches import PatchBatch
from viq.models.layers.blocks import AttentionPool, Block, Mlp, ResidualMlp
from viq.models.tokenizer.decoder import ConvBlock
from viq.models.tokenizer.quantizer import SlotBlock
from viq.models.tokenizer.tokenizer import VisualTokenizer

_GELU_GAIN = 1.53  # 1 / rms(GELU(x)) for a standard normal x


@torch.no_grad()
def initialize(model: VisualTokenizer) -> None:
    """Draw all linear layers anew, in the order of the modules, from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Mlp):
            module.fc2.weight *= _GELU_GAIN
    for module in model.modules():
        if isinstance(module, Block | SlotBlock):
            nn.init.zeros_(module.attn.proj.weight)
        if isinstance(module, Block | SlotBlock | ResidualMlp | AttentionPool | ConvBlock):
            nn.init.zeros_(module.mlp.fc2.weight)
    patch_size = model.config.encoder.patch_size
    embed = model.encoder.patch_embed
    basis, amplitude = _cosine_basis(patch_size, embed.out_features)
    # Halfway to whitening: amplitudes enter as their square root.
    rows = basis / amplitude.sqrt()[:, None]
    embed.weight.copy_(_rotation(embed.out_features) @ _padded(rows, embed.out_features))
    embed.weight /= (amplitude.square().sum() / embed.out_features).sqrt() ** 0.5
    if model.decoder is not None:
        out = model.decoder.project_out
        basis, amplitude = _cosine_basis(patch_size, out.in_features)
        columns = _padded(basis * amplitude[:, None], out.in_features)
        out.weight.copy_(0.5 * columns.T @ _rotation(out.in_features))


def _cosine_basis(patch_size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The strongest components of natural patches: rows (at most count, D), amplitudes.

    Rows are orthonormal: a 2D cosine times one of three opponent colours. Amplitudes fall with
    one over the frequency, and are smaller for colour than for brightness; the scale is that of
    pixels in [-1, 1].
    """
    n = patch_size
    k, x = torch.arange(n)[:, None], torch.arange(n)[None]
    cosine = torch.cos(math.pi * (2 * x + 1) * k / (2 * n)) * (2 / n) ** 0.5
    cosine[0] /= 2**0.5
    colors = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colors /= colors.norm(dim=1, keepdim=True)
    strength = torch.tensor([1.0, 0.3, 0.15])
    frequency = (k.square() + k.T.square()).float().sqrt()
    amplitude = strength[:, None, None] * 0.4 * math.sqrt(3) * n / (1 + 2 * frequency)
    rows = torch.einsum("ec,uy,vx->euvcyx", colors, cosine, cosine).flatten(3).flatten(0, 2)
    order = amplitude.flatten().argsort(descending=True)[:count]
    return rows[order], amplitude.flatten()[order]


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    return nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _rotation(size: int) -> torch.Tensor:
    """A random orthogonal matrix, so that no channel is the mean colour alone."""
    return torch.linalg.qr(torch.randn(size, size))[0]


@torch.no_grad()
def fit_fsq(model: VisualTokenizer, previous: VisualTokenizer, batches: list[PatchBatch]) -> None:
    """Begin FSQ where the proximal bottleneck ended: principal directions in, least squares out.

    `model` has FSQ and is otherwise equal to `previous`, whose proximal vectors are reduced to
    their d strongest directions, each scaled to unit variance, which spreads values over all
    levels. Drawn at random instead, d directions share one large mean and a handful of codes.
    """
    fsq_part, proximal = model.quantizer.bottleneck, previous.quantizer.bottleneck
    slots_KC, limited_KP = _slots_and_limited(previous, batches)
    centred_KP = limited_KP - limited_KP.mean(0)
    scores = torch.linalg.svd(centred_KP, full_matrices=False)[0]
    d = fsq_part.project_in.out_features
    target_Kd = scores[:, :d] * len(scores) ** 0.5
    _set(fsq_part.project_in, slots_KC, target_Kd)
    codes_Kd = fsq_part.bound(fsq_part.project_in(slots_KC.float())).double()
    _set(fsq_part.project_out, codes_Kd, proximal.project_out(limited_KP.float()).double())


@torch.no_grad()
def fit_simvq(model: VisualTokenizer, previous: VisualTokenizer, batches: list[PatchBatch]) -> None:
    """Begin SimVQ where the proximal bottleneck ended: its centred vectors in, the codebook spread
    as they are, least squares out. As `fit_fsq` otherwise."""
    simvq, proximal = model.quantizer.bottleneck, previous.quantizer.bottleneck
    slots_KC, limited_KP = _slots_and_limited(previous, batches)
    centred_KP = limited_KP - limited_KP.mean(0)
    _set(simvq.project_in, slots_KC, centred_KP)
    # Rows are normal of deviation d^-1/2, so this gives them the covariance of the vectors.
    _, scales, directions = torch.linalg.svd(centred_KP, full_matrices=False)
    spread = directions.T * (scales / len(slots_KC) ** 0.5) @ directions
    simvq.map.weight.copy_(spread * len(spread) ** 0.5)
    codes_Kd = simvq.bound(simvq.project_in(slots_KC.float())[:, None])[:, 0].double()
    _set(simvq.project_out, codes_Kd, proximal.project_out(limited_KP.float()).double())


def _slots_and_limited(
    previous: VisualTokenizer, batches: list[PatchBatch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots (K, C) of all patches, and what the proximal bottleneck makes of them (K, P), fp64."""
    proximal = previous.quantizer.bottleneck
    slots, limited = [], []
    for batch in batches:
        batch = replace(batch, patches_TD=batch.patches_TD.to(previous.device))
        slots_TSC = previous.quantizer.expand(previous.encoder(batch), batch.grids_hw)
        slots.append(slots_TSC.flatten(0, 1))
        limited.append(proximal.bound(proximal(slots_TSC, batch.grids_hw)).flatten(0, 1))
    return torch.cat(slots).double(), torch.cat(limited).double()


def _set(linear: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """The ridge-regularised least-squares map from inputs (K, in) to outputs (K, out)."""
    ones = inputs.new_ones(len(inputs), 1)
    x = torch.cat([inputs, ones], dim=1)
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ outputs)
    linear.weight.copy_(solution[:-1].T)
    linear.bias.copy_(solution[-1])
