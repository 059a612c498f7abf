"""The tokenizer of an arm, and what its stages optimise.

T = patches of all pictures, S = 4 slots, C = width, F = channels of the pretrained network, n =
pictures, d = channels of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from viq.data.batching.tokenizer_batches import MicroBatch
from viq.data.text.chat_format import pack_chats
from viq.eval.ablations.arms import Arm
from viq.eval.ablations.material import Pictures
from viq.eval.probes.benchmark import ProbeQuestion
from viq.image.patches import PatchBatch, normalize, pack, patchify
from viq.models.tokenizer.encoder import Encoder, EncoderConfig
from viq.models.tokenizer.quantizer import ProximalBottleneck
from viq.models.tokenizer.simvq import SimVQBottleneck
from viq.models.tokenizer.tokenizer import TokenizerConfig, VisualTokenizer
from viq.train.tokenizer import losses
from viq.train.tokenizer.objectives import AlignObjective


@dataclass(frozen=True, kw_only=True)
class SeenBatch(PatchBatch):
    """Packed pictures, and channels (T, F), fp32, of what the pretrained network sees in them."""

    seen_TF: Tensor


def batch_of(pictures: Pictures, numbers: Sequence[int]) -> SeenBatch:
    """Some pictures in one sequence."""
    plain = pack([normalize(pictures.pixels[number]) for number in numbers])
    seen_TF = torch.cat([pictures.seen[number] for number in numbers]).float()
    return SeenBatch(patches_TD=plain.patches_TD, grids_hw=plain.grids_hw, seen_TF=seen_TF)


class SeenEncoder(Encoder):
    """The encoder, whose patches are embedded from pixels and the network's channels together."""

    def __init__(self, config: EncoderConfig, seen: int) -> None:
        super().__init__(config)
        self.seen_embed = nn.Linear(seen, config.width)

    def embed(self, batch: PatchBatch) -> Tensor:
        """Patch plus position embedding, (T, C), of a `SeenBatch`."""
        assert isinstance(batch, SeenBatch)
        return super().embed(batch) + self.seen_embed(batch.seen_TF)


class BatchNormBottleneck(ProximalBottleneck):
    """The proximal bottleneck, each channel normalised over patches in place of a unit ball."""

    def __init__(self, width: int, config: TokenizerConfig) -> None:
        super().__init__(width, config.quantizer)
        self.norm = nn.BatchNorm1d(config.quantizer.proximal_width, affine=False)

    def bound(self, z_TSd: Tensor) -> Tensor:
        """Values (..., d) of mean 0 and deviation 1, in training over the batch."""
        return self.norm(z_TSd.flatten(0, -2)).view_as(z_TSd)


def make(arm: Arm, config: TokenizerConfig, seen: int) -> VisualTokenizer:
    """A tokenizer of an arm with initial weights, its encoder and bottleneck exchanged."""
    tokenizer = VisualTokenizer(config)
    tokenizer.encoder = SeenEncoder(config.encoder, seen)
    if config.quantizer.bottleneck == "proximal" and arm.bound == "batch":
        tokenizer.quantizer.bottleneck = BatchNormBottleneck(config.encoder.width, config)
    if config.quantizer.bottleneck == "fsq" and arm.quantizer == "simvq":
        tokenizer.quantizer.bottleneck = SimVQBottleneck(config.encoder.width, config.quantizer)
    return tokenizer


def code_ids(tokenizer: VisualTokenizer, z_TSd: Tensor) -> Tensor:
    """Numbers of codes (T, S), int64, of values before the limit, by either quantizer."""
    bottleneck = tokenizer.quantizer.bottleneck
    quantizer = bottleneck if isinstance(bottleneck, SimVQBottleneck) else bottleneck.fsq
    return quantizer.indices(z_TSd)


def micro_batch(
    pictures: Pictures, questions: Sequence[ProbeQuestion], taught_nC: Tensor | None
) -> MicroBatch:
    """Pictures with their conversations.

    Args:
        taught_nC: the teacher's tokens of all pictures; None: no distillation.
    """
    numbers = [question.picture for question in questions]
    pixels = [normalize(pictures.pixels[number]) for number in numbers]
    return MicroBatch(
        batch=batch_of(pictures, numbers),
        mask_TD=torch.cat([patchify(torch.ones_like(p)) for p in pixels]),
        sizes=tuple((p.shape[-2], p.shape[-1]) for p in pixels),
        text=pack_chats([question.chat for question in questions]),
        text_images=len(numbers),
        taught_nC=None if taught_nC is None else taught_nC[numbers],
    )


class ArmObjective(AlignObjective):
    """Answers, self-distillation and reconstruction, and the commitment loss of SimVQ."""

    counted_in = {**losses.TERMS["align"], "commit": "patches"}

    def forward(self, micro: MicroBatch) -> dict[str, Tensor]:
        """Sums by name, fp32."""
        sums = super().forward(micro)
        bottleneck = self.tokenizer.quantizer.bottleneck
        if self.bottleneck and isinstance(bottleneck, SimVQBottleneck):
            sums["commit"] = bottleneck.commitment_T.sum()
        return sums
