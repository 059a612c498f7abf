"""What a stage optimises: modules that take a micro-batch and give named sums.

Every loss term is a sum over things that are counted (answer tokens, images, patches). The loop
divides by the count of the whole step, over all micro-batches and processes, so that a step has the
same loss however it is cut up. Weights are those of docs/training.md.

T = patches of all images, C = width of features, D = values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import Grid
from viq.data.batching.tokenizer_batches import MicroBatch, images_of
from viq.image.patches import lengths_of, unpatchify
from viq.models.language.vision_language import VisionLanguageModel
from viq.models.layers.unregistered import Unregistered
from viq.models.tokenizer.fsq import FSQ
from viq.models.tokenizer.latent_head import LatentHead
from viq.models.tokenizer.quantizer import FSQBottleneck, QuantizerHead
from viq.models.tokenizer.qwen_vae import encode_latents
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_decoder import TransformDecoder
from viq.models.vision.tower import VisionTower, stretch
from viq.train.loss_terms import Objective
from viq.train.tokenizer import losses
from viq.train.tokenizer.discriminator import Discriminator

PIXELS = ("rmse", "mse")  # terms of painted pixels


class AlignObjective(Objective):
    """Stages 1, 2-1 and 2-2: answers, self-distillation, reconstruction (paper, section 3).

    Args:
        bottleneck: False in stage 1, where the features are the encoder's own tokens.
        reader: projector and language model; None: no text loss.
        teacher: frozen tower whose pooled token the student's follows; None: no distillation, but
            for micro-batches that carry the teacher's tokens.
        reconstruct: paint pixels with the model's own decoder.
        vae: frozen Qwen-Image VAE; the model's latent head then predicts its latents, as the
            paper does.
    """

    counted_in, metrics = losses.TERMS["align"], losses.METRICS

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        *,
        bottleneck: bool = True,
        reader: VisionLanguageModel | None = None,
        teacher: VisionTower | None = None,
        reconstruct: bool = False,
        vae: Any = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.reader, self.teacher = tokenizer, reader, teacher
        self.bottleneck, self.reconstruct = bottleneck, reconstruct
        self.last_z: Tensor | None = None  # (T, S, d) of the last micro-batch, for `code_ids`
        self._vae = Unregistered(vae)  # never trained

    def forward(self, micro: MicroBatch) -> dict[str, Tensor]:
        """Sums by name, fp32."""
        grids = micro.batch.grids_hw
        sums: dict[str, Tensor] = {}
        if self.bottleneck:
            output = self.tokenizer(micro.batch)
            features_TC, self.last_z = output.features_TC, output.z_TSd.detach()
        else:
            features_TC = self.tokenizer.encoder(micro.batch)
        if self.reader is not None and micro.text is not None:
            seen = sum(lengths_of(grids[: micro.text_images]))
            score = self.reader(
                features_TC[:seen],
                grids[: micro.text_images],
                micro.text.ids_L,
                micro.text.targets_L,
                micro.text.lengths,
            )
            sums["text"] = score.loss_A.sum()
            sums["correct"] = score.correct_A.sum()
        if self.teacher is not None or micro.taught_nC is not None:
            sums["distill"] = self._distill(features_TC, micro)
        if self.reconstruct:
            painted = self.tokenizer.reconstruct(features_TC, grids)
            sums |= pixel_terms(painted, micro)
        if self._vae.module is not None:
            assert self.tokenizer.latent_head is not None
            sums["latents"] = latent_mse(
                self.tokenizer.latent_head, self._vae.module, features_TC, micro
            )
        return sums

    def _distill(self, features_TC: Tensor, micro: MicroBatch) -> Tensor:
        """1 - cosine of student's and teacher's pooled token, summed over images."""
        wanted = micro.taught_nC
        if wanted is None:
            assert self.teacher is not None
            with torch.no_grad():
                wanted = self.teacher(stretch(images_of(micro), self.teacher.config.side))
        pooled = self.tokenizer.pooled(features_TC, micro.batch.grids_hw)
        return (1 - F.cosine_similarity(pooled.float(), wanted.float(), dim=-1)).sum()


def pixel_terms(painted_TD: Tensor, micro: MicroBatch) -> dict[str, Tensor]:
    """How far painted pixels are off, padding left out: both terms of which a recipe takes one."""
    grids = micro.batch.grids_hw
    mse_n = losses.image_mse(painted_TD, micro.batch.patches_TD, micro.mask_TD, grids)
    return {
        "rmse": losses.rmse_sum(mse_n, grids),
        "mse": losses.mse_sum(mse_n, grids),
        "psnr": losses.psnr(mse_n.detach()) * len(mse_n),
    }


def latent_mse(head: LatentHead, vae: Any, features_TC: Tensor, micro: MicroBatch) -> Tensor:
    """Squared error of predicted latents, element mean, summed over images.

    The paper's loss is a Gaussian likelihood of unit variance, which is this up to a constant.
    """
    patch = 16
    padded = [
        unpatchify(part, (rows * patch, cols * patch))
        for part, (rows, cols) in zip(
            micro.batch.patches_TD.split(lengths_of(micro.batch.grids_hw)),
            micro.batch.grids_hw,
            strict=True,
        )
    ]
    targets = encode_latents(vae, padded)
    predicted = head(features_TC, micro.batch.grids_hw)
    return torch.stack(
        [F.mse_loss(p.float(), t) for p, t in zip(predicted, targets, strict=True)]
    ).sum()


class DecoderObjective(Objective):
    """The last stage: the pixel decoder on frozen codes (paper, appendix; unreleased).

    Error of pixels, distance of deep features, a patch-wise adversary, and alignment of the
    decoder's own features with a frozen vision tower. The adversary learns in the same step: its
    terms see painted pixels without their gradient, the decoder's the adversary without its own.

    Args:
        perceptual: module that gives a distance (n,) of painted and real images.
        alignment: module that gives a distance (n,) of decoder features and a tower's.
    """

    counted_in, metrics = losses.TERMS["decoder"], losses.METRICS

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        *,
        discriminator: Discriminator | None = None,
        perceptual: nn.Module | None = None,
        alignment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        assert tokenizer.decoder is not None
        self.tokenizer, self.discriminator = tokenizer, discriminator
        self.perceptual, self.alignment = perceptual, alignment

    def forward(self, micro: MicroBatch) -> dict[str, Tensor]:
        """Sums by name, fp32."""
        grids, real_TD, mask_TD = micro.batch.grids_hw, micro.batch.patches_TD, micro.mask_TD
        decoder = self.tokenizer.decoder
        assert decoder is not None
        with torch.no_grad():
            features_TC = self._features(micro)
        hidden = decoder.hidden(features_TC, grids)
        if isinstance(decoder, TransformDecoder):  # most of its pixels come from a fixed map
            with torch.autocast(hidden.device.type, enabled=False):
                painted_TD = decoder.paint(hidden.float(), features_TC, grids)
        else:
            painted_TD = decoder.paint(hidden, features_TC, grids)
        sums = pixel_terms(painted_TD, micro)
        # Padding is what the picture has there, so that no judge tells the two apart by it.
        painted_TD = torch.where(mask_TD > 0, painted_TD, real_TD)
        if self.perceptual is not None:
            sums["perceptual"] = self.perceptual(painted_TD, real_TD, grids).sum()
        if self.alignment is not None:
            sums["features"] = self.alignment(hidden, images_of(micro), grids).sum()
        if self.discriminator is not None:
            sums |= self._adversary(painted_TD, real_TD, grids)
        return sums

    def _features(self, micro: MicroBatch) -> Tensor:
        """Features (T, C) of known codes, or of those that the tokenizer makes."""
        if micro.ids_TS is None:
            return self.tokenizer(micro.batch).features_TC
        with torch.autocast(micro.ids_TS.device.type, enabled=False):
            return self.tokenizer.features(micro.ids_TS, micro.batch.grids_hw)

    def _adversary(
        self, painted_TD: Tensor, real_TD: Tensor, grids: Sequence[Grid]
    ) -> dict[str, Tensor]:
        """Hinge losses of both sides, summed over patches."""
        judge = self.discriminator
        assert judge is not None
        fixed = {name: value.detach() for name, value in judge.named_parameters()}
        fooled = torch.func.functional_call(judge, fixed, (painted_TD, grids))
        told = F.relu(1 - judge(real_TD, grids)) + F.relu(1 + judge(painted_TD.detach(), grids))
        return {"adversarial": -fooled.sum(), "discriminator": told.sum()}


class TowerObjective(Objective):
    """Train a vision tower against sentence embeddings of captions, with SigLIP's sigmoid loss.

    For where no pretrained teacher is at hand. Each image and each caption of a micro-batch make a
    pair; pairs with the same caption count as matching.

    Args:
        sentences: captions to unit vectors (n, E), frozen.
    """

    counted_in, metrics = losses.TERMS["tower"], losses.METRICS

    def __init__(self, tower: VisionTower, sentences: Any, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.project = nn.Linear(tower.config.encoder.width, width)
        # SigLIP's start: temperature 10, bias -10, so that the many non-pairs drown nothing.
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-10.0))
        self._sentences = [sentences]

    def forward(self, micro: MicroBatch) -> dict[str, Tensor]:
        """`contrast`: summed over captioned images; `matched`: how many find their caption."""
        chosen = [i for i, caption in enumerate(micro.captions) if caption]
        captions = [micro.captions[i] for i in chosen]
        weight = float(bool(chosen))
        if not chosen:  # a picture of weight zero has a gradient, so that processes stay in step
            chosen, captions = [0], [""]
        pictures = images_of(micro)
        pooled = self.tower(stretch([pictures[i] for i in chosen], self.tower.config.side))
        seen_nE = F.normalize(self.project(pooled).float(), dim=-1)
        said_nE = self._sentences[0](captions).to(seen_nE)
        logits_nn = seen_nE @ said_nE.T * self.log_scale.exp() + self.bias
        same_nn = torch.tensor(
            [[a == b for b in captions] for a in captions], device=seen_nE.device
        )
        signs = same_nn.float() * 2 - 1
        hits = same_nn.gather(1, logits_nn.argmax(1, keepdim=True)).sum()
        loss = -F.logsigmoid(signs * logits_nn).sum()
        return {"contrast": loss * weight, "matched": hits * weight}


TokenizerObjective = AlignObjective | DecoderObjective | TowerObjective


def code_ids(objective: nn.Module) -> Tensor | None:
    """Codebook indices (T, S) of the last micro-batch, where the model has codes."""
    z_TSd = objective.last_z if isinstance(objective, AlignObjective) else None
    fsq = fsq_of(objective)
    return None if z_TSd is None or fsq is None else fsq.indices(z_TSd)


def fsq_of(objective: nn.Module) -> FSQ | None:
    """The codebook of the model, where it has one."""
    tokenizer = getattr(objective, "tokenizer", None)
    if not isinstance(tokenizer, VisualTokenizer):
        return None
    if not isinstance(tokenizer.quantizer, QuantizerHead):
        return None
    bottleneck = tokenizer.quantizer.bottleneck
    return bottleneck.fsq if isinstance(bottleneck, FSQBottleneck) else None
