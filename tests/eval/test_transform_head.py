"""The head of a model that draws codes of a transform: exact likelihoods, and ids that are real."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from viq.core.types import IGNORE, IMAGE_TOKEN
from viq.data.synthetic.captions import CaptionedShapes
from viq.mllm.generation import CodeGenerator, CodeGeneratorConfig
from viq.mllm.level_head import Sampling
from viq.mllm.transform_head import TransformHead
from viq.models.language.vision_language import LanguageConfig, build_language
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.semantic import SemanticConfig
from viq.models.tokenizer.transform_code import Indices, TransformConfig, shared_places
from viq.weights.checkpoint import CheckpointError

pytest.importorskip("transformers")
GRID = (3, 5)
EXACT, LIKELIEST = Sampling(), Sampling(temperature=0)
SEMANTIC = SemanticConfig(levels=(2, 2, 2, 2, 2, 2))


@pytest.fixture(scope="module")
def small() -> TransformHead:
    """A head of so few codes that all can be counted: 2 classes, the first of 4 x 2 levels (2 x 2
    in three codes), the second of 2 x 1."""
    torch.manual_seed(0)
    transform = TransformConfig(
        classes=2, basis=3, coefficients=2, levels=4, means=(2, 2), detail=32_000
    )
    head = TransformHead(8, 16, 5, transform, SEMANTIC)
    code = head.quantizer.code
    code.radices.copy_(
        torch.tensor([[[2, 1], [1, 2], [1, 1], [2, 1]], [[1, 1], [2, 1]] + [[1, 1]] * 2])
    )
    for values in (code.values, code.short_values):
        values.normal_().copy_(values.sort(2).values)
    code.directions.normal_()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head.requires_grad_(False)


def every_patch(head: TransformHead, short: bool) -> Tensor:
    """All codes (n, S) that an encoder could give at one place."""
    code, slots = head.quantizer.code, 3 if short else 4
    found = []
    for said in itertools.product(range(2), range(2), range(2), range(4), range(2)):
        counts = code.counts(slots)[said[0]]
        if said[3] < counts[0] and said[4] < counts[1]:
            first, coarse, fine = (torch.tensor([number]) for number in said[:3])
            codes = code.pack(Indices(first, coarse, fine, torch.tensor([said[3:]])), slots)
            for meant in range(64) if short else [None]:
                if meant is not None:
                    codes = codes.clone()
                    codes[:, 3] = code.config.detail + meant
                found.append(codes)
    return torch.cat(found)


@pytest.mark.parametrize("short", [False, True])
def test_the_likelihood_sums_to_one(small: TransformHead, short: bool) -> None:
    every = every_patch(small, short)
    assert len(every) == (4 * (4 + 2) * 64 if short else 4 * (8 + 2))
    assert len(every.unique(dim=0)) == len(every)
    nats = small.nats(
        torch.randn(1, 8).expand(len(every), 8),
        every,
        torch.randn(1, 4, 29).expand(len(every), -1, -1),
    )
    assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("short", [False, True])
def test_sampling_draws_from_that_likelihood(small: TransformHead, short: bool) -> None:
    """Each code comes as often as it is likely; without a caption, and with guidance 1, too."""
    hidden, place = torch.randn(1, 8), (2, 4) if short else (2, 3)
    every, count = every_patch(small, short), 4000
    if short:  # row 2 and column 4 are of group (1, 2): phase 2
        every[:, 3] += 2 * 64
    seed = torch.Generator().manual_seed(0)
    around = torch.randn(1, 4, 29)
    drawn = small.write(
        hidden.expand(count, 8), None, around.expand(count, -1, -1), place, EXACT, seed
    )
    each = around.expand(len(every), -1, -1)
    chances = small.nats(hidden.expand(len(every), 8), every, each).neg().exp()
    shares = (drawn[:, None] == every).all(2).float().mean(0)
    assert shares.sum() == 1  # no others
    assert (shares - chances).abs().max() < 4 * (0.25 / count) ** 0.5
    free = torch.randn(1, 8)
    unasked = Sampling(temperature=0, guidance=0)  # as if nothing had been asked
    assert torch.equal(
        small.write(hidden, free, around, place, unasked, None),
        small.write(free, None, around, place, LIKELIEST, None),
    )


@pytest.fixture(scope="module")
def embedder() -> CodeEmbedder:
    return CodeEmbedder.from_tokenizer("viq-transform")


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Codes (T, S) of two pictures of `GRID`."""
    size = (16 * GRID[0], 16 * GRID[1])
    pictures = [CaptionedShapes("train", size).pair(number).image for number in range(2)]
    codes = load("viq-transform").encode(pictures)
    return torch.from_numpy(np.concatenate([item.ids.reshape(-1, 4) for item in codes])).long()


@pytest.fixture(scope="module")
def model(embedder: CodeEmbedder) -> CodeGenerator:
    torch.manual_seed(0)
    config = CodeGeneratorConfig(
        levels=embedder.config.levels,
        tokenizer="viq-transform",
        fingerprint=embedder.config.fingerprint,
        head_width=16,
        transform=embedder.config.transform,
        semantic=embedder.config.semantic,
        detail_width=embedder.transform.detail_width,
    )
    shape = LanguageConfig(width=32, depth=2, heads=2, mlp_width=64)
    model = CodeGenerator(build_language(shape, 300), config)
    model.take_tables(embedder)
    with torch.no_grad():  # wide enough apart that the likeliest is never a matter of rounding
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.requires_grad_(False).eval()


def test_real_ids_come_back_from_what_they_say(model: CodeGenerator, ids: Tensor) -> None:
    assert isinstance(model.head, TransformHead)
    code, semantic = model.head.quantizer.code, model.head.semantic
    short_T = code.meaning(ids) >= 0
    places = torch.cat([shared_places(GRID), shared_places(GRID) + GRID[0] * GRID[1]])
    assert torch.equal(short_T.nonzero()[:, 0], places)
    said = code.unpack(ids)
    assert torch.equal(code.pack(said)[~short_T], ids[~short_T])
    assert torch.equal(code.pack(said, 3)[short_T, :3], ids[short_T, :3])
    assert semantic is not None
    meant = ids[short_T, 3] - code.config.detail
    index = (semantic.fsq.levels_of(meant) * torch.tensor(semantic.fsq.basis)).sum(1)
    assert torch.equal(index, meant % semantic.fsq.codebook_size)
    assert model.head.values(ids).shape == (len(ids), model.config.width_read)


def test_patches_know_those_around_them(model: CodeGenerator, ids: Tensor) -> None:
    """Likelihoods of a picture's patches depend on those before, and on none that follow."""
    count, prompt = GRID[0] * GRID[1], [5, 6, 7]
    tokens = torch.tensor([*prompt, *[IMAGE_TOKEN] * count])
    arguments = (torch.full_like(tokens, IGNORE), (len(tokens),))
    seen: list[Tensor] = []
    nats = model.head.nats
    model.head.nats = lambda *given: seen.append(nats(*given)) or seen[-1]  # type: ignore[method-assign]
    changed = ids[:count].clone()
    changed[7] = ids[count + 7]
    for codes in (ids[:count], changed):
        model(tokens, *arguments, codes, [GRID], torch.ones(count, dtype=torch.bool))
    del model.head.nats
    same = torch.isclose(seen[0], seen[1], atol=1e-4)
    assert same[:7].all() and not same[7:9].all()


def test_saved_and_loaded_it_draws_the_same(model: CodeGenerator, tmp_path: Path) -> None:
    prompts, free = [[5, 6, 7], [8, 9]], [4, 3]
    model.save_pretrained(tmp_path / "model")
    again = CodeGenerator.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    guided = Sampling(temperature=0, guidance=2)
    drawn = model.generate(prompts, free, GRID, guided)
    assert torch.equal(again.generate(prompts, free, GRID, guided), drawn)
    # A picture does not depend on those drawn beside it.
    assert torch.equal(model.generate(prompts[:1], free, GRID, guided), drawn[:1])
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    for wrong in ({"detail_width": 3}, {"detail_width": 10**9}, {"transform": None}):
        path.write_text(json.dumps(values | wrong))
        with pytest.raises(CheckpointError):
            CodeGenerator.from_pretrained(tmp_path / "model")
