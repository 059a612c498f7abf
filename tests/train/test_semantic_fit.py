"""Fitting codes of meaning: their start, the same by seed, and no photo that is held out."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from viq.core.types import ViqError
from viq.core.untrusted import UntrustedError
from viq.data.corpora.held_out import is_held_out, labelled
from viq.data.sources.open import open_source
from viq.models.tokenizer.semantic import INPUTS, SemanticConfig, SemanticEncoder
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.train.tokenizer import semantic_fit
from viq.train.tokenizer.semantic_fit import (
    Features,
    SemanticBatch,
    SemanticFitConfig,
    SemanticObjective,
    fit_semantic,
    start,
)

TINY = SemanticFitConfig(model=SemanticConfig(hidden=8, reader=16), side=64, steps=10, images=2)


def photos() -> list[Image.Image]:
    """40 noisy pictures of many sizes and colours."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        shape = (*rng.integers(20, 60, 2), 3)
        pixels = rng.uniform(0, 255, 3) + rng.normal(0, 40, shape)
        found.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return found


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    """One with random weights, whose features are about as large as those of the published one."""
    torch.manual_seed(0)
    network = EfficientNetLite0().requires_grad_(False).eval()
    for layer in network.trunk.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network


@pytest.fixture(scope="module")
def drawn() -> Features:
    """Random features of 300 images of 2 x 3 groups; class 7 follows number 5, class 3 number 400
    half as strongly, and numbers have means and deviations of their own."""
    noise = torch.Generator().manual_seed(0)
    pooled = torch.randn(300, 1, 1, INPUTS, generator=noise)
    groups = pooled + 0.5 * torch.randn(300, 2, 3, INPUTS, generator=noise)
    logits = 0.01 * torch.randn(300, 1000, generator=noise)
    logits[:, 7] += 20 * pooled[:, 0, 0, 5]
    logits[:, 3] += 10 * pooled[:, 0, 0, 400]
    scale = torch.linspace(0.5, 3, INPUTS)
    return Features((groups * scale + scale).half(), logits.half())


@pytest.fixture()
def encoder(network: EfficientNetLite0) -> SemanticEncoder:
    torch.manual_seed(0)
    return SemanticEncoder(TINY.model).requires_grad_(False).eval()


def test_fit_is_the_same_again_and_leaves_the_teacher_alone(network: EfficientNetLite0) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    records: list[dict[str, Any]] = []
    one, _ = fit_semantic(photos(), TINY, network, records.append)
    torch.rand(7)
    two, reader = fit_semantic(iter(photos()), TINY, network)
    assert reader(two.values(two.ids(torch.zeros(3, 96, 64)))[None]).shape == (1, 3, 2, 16)
    assert not any(p.requires_grad for p in reader.parameters())
    other, _ = fit_semantic(photos(), dataclasses.replace(TINY, seed=1), network)
    assert all(torch.equal(a, before[name]) for name, a in network.state_dict().items())
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
        if name.startswith("trunk."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(one.linear.weight, other.linear.weight)
    assert float(one.correction.weight.abs().sum()) > 0
    assert not one.training and not any(p.requires_grad for p in one.parameters())
    assert len(records) == 10 and {f"loss/{name}" for name in TINY.losses} <= records[-1].keys()


def test_no_steps_give_the_start_alone(network: EfficientNetLite0) -> None:
    fitted, _ = fit_semantic(photos(), dataclasses.replace(TINY, steps=0), network)
    assert not fitted.correction.weight.any()
    seen = torch.stack([v for views in semantic_fit._views(photos(), TINY) for v in views])
    z = fitted.pick(fitted.standardised(fitted.features(seen))) + torch.tensor(
        fitted.values.fsq.shift
    )
    assert seen.shape == (80, 3, 64, 64)
    assert z.std((0, 1, 2)).tolist() == pytest.approx([0.8] * 6, rel=0.4)


def test_the_start_tells_what_the_teacher_tells(encoder: SemanticEncoder, drawn: Features) -> None:
    start(encoder, drawn, TINY)
    own = drawn.groups_nhwI.float()
    assert encoder.mean.tolist() == pytest.approx(own.mean((0, 1, 2)).tolist(), abs=1e-3)
    assert encoder.deviation.tolist() == pytest.approx(own.std((0, 1, 2)).tolist(), rel=1e-2)
    z = encoder.linear(encoder.standardised(own))
    shift = torch.tensor(encoder.values.fsq.shift * 4)
    assert (z + shift).mean((0, 1, 2)).abs().max() < 1e-3
    assert z.std((0, 1, 2)).tolist() == pytest.approx([0.8] * 24, rel=1e-2)
    # The strongest direction is the first of phase 0, the second the first of phase 1.
    assert (encoder.linear.weight.abs().argmax(1)[[0, 6]]).tolist() == [5, 400]
    assert not torch.isnan(encoder.linear.weight).any()


def test_features_that_never_change_do_no_harm(encoder: SemanticEncoder) -> None:
    flat = Features(torch.ones(40, 2, 2, INPUTS).half(), torch.zeros(40, 1000).half())
    start(encoder, flat, TINY)
    assert encoder.pick(encoder.standardised(flat.groups_nhwI.float())).isfinite().all()


def test_a_reader_that_knows_all_loses_nothing(
    encoder: SemanticEncoder, network: EfficientNetLite0, drawn: Features
) -> None:
    start(encoder, drawn, TINY)
    groups = drawn.groups_nhwI[:3].float()
    logits = network.classify(groups[..., 112:].permute(0, 3, 1, 2))
    objective = SemanticObjective(encoder, network, TINY)
    objective.features = Knows(encoder.standardised(groups))
    batch = SemanticBatch(groups_nhwI=groups, logits_nk=logits, rounded=True)
    assert batch.counts == {"images": 3, "groups": 18}
    for name, value in objective(batch).items():
        assert float(value) == pytest.approx(0, abs=1e-4), name
    objective.features = Knows(encoder.standardised(groups) + 1)
    wrong = objective(batch)
    assert [float(wrong[name]) for name in ("coarse", "fine", "pooled")] == pytest.approx(
        [18, 18, 3]
    )
    assert set(wrong) == set(SemanticObjective.counted_in)


class Knows(torch.nn.Module):
    """The end of a reader that gives what it was told."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_the_reader_gets_24_values_rounded_when_it_is_time(
    encoder: SemanticEncoder, network: EfficientNetLite0, drawn: Features
) -> None:
    start(encoder, drawn, TINY)
    objective = SemanticObjective(encoder, network, TINY)
    x = encoder.standardised(drawn.groups_nhwI[:3].float())
    with torch.no_grad():
        smooth, rounded = objective._values(x, False), objective._values(x, True)
    assert smooth.shape == rounded.shape == (3, 2, 3, 24)
    ids = torch.stack([encoder.values.encode(z) for z in encoder.pick(x)])
    assert torch.allclose(rounded, encoder.values(ids))
    assert 0 < float((smooth - rounded).abs().max()) <= 0.25 + 1e-4
    assert (smooth != 0).sum(-1).max() == 6 and not rounded[smooth == 0].any()
    assert [b.rounded for b in islice(semantic_fit._batches(drawn, TINY), 10)] == (
        [False] * 4 + [True] * 6
    )


def test_training_learns(
    encoder: SemanticEncoder, network: EfficientNetLite0, drawn: Features
) -> None:
    config = dataclasses.replace(TINY, steps=60, images=16)
    records: list[dict[str, Any]] = []
    start(encoder, drawn, config)
    objective = SemanticObjective(encoder, network, config)
    semantic_fit.train_in_memory(
        objective, semantic_fit._batches(drawn, config), config.loop(), name="test", seed=0,
        log=records.append,
    )  # fmt: skip
    assert records[-1]["loss/coarse"] < records[0]["loss/coarse"]
    assert records[-1]["loss"] < records[0]["loss"]


def test_views_are_the_whole_photo_and_crops() -> None:
    image = Image.new("RGB", (50, 20), (255, 0, 0))
    whole, crop, _ = next(semantic_fit._views([image], dataclasses.replace(TINY, crops=2)))
    for view in (whole, crop):
        assert view.shape == (3, 64, 64) and view[:, 3, 3].tolist() == [1, -1, -1]
    assert len(next(semantic_fit._views([image], dataclasses.replace(TINY, crops=0)))) == 1


def test_too_few_photos(network: EfficientNetLite0) -> None:
    with pytest.raises(ViqError, match="3 photos: codes of meaning need at least 32"):
        fit_semantic(photos()[:3], TINY, network)


@pytest.mark.parametrize(
    "values",
    [
        {"side": 0}, {"side": 40}, {"side": 2**20}, {"crops": -1}, {"steps": -1}, {"steps": 1.5},
        {"least_crop": 0.0}, {"least_crop": 1.5}, {"unrounded": 1.5}, {"unrounded": float("nan")},
        {"spread": 0.0}, {"ridge": -1.0}, {"learning_rate": 0.0}, {"images": 0},
        {"halved": (0.5,)}, {"halved": (0.9, 0.2)}, {"halved": (-0.1, 0.2)},
        {"losses": {"style": 1.0}},
    ],
)  # fmt: skip
def test_configs_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises((ValueError, UntrustedError, ViqError)):
        SemanticFitConfig(**values)


@pytest.fixture()
def labels(tmp_path: Path) -> Path:
    """JSON lines: 16 cats and 9 dogs of place a, 8 more cats of place b, 3 things, 4 unlabelled."""
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    rows = [("cat", "a")] * 16 + [("dog", "a")] * 9 + [("cat", "b")] * 8 + [("thing", "a")] * 3
    lines = [
        {"image": "one.png", "id": f"p{number}", "source": place, "label": label}
        for number, (label, place) in enumerate([*rows, *[(None, "b")] * 4])
    ]
    (tmp_path / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "photos.jsonl"


def test_a_photo_is_held_out_whatever_it_lies_beside(labels: Path) -> None:
    source = open_source(labels)
    held = {row: is_held_out(name) for row, name in enumerate(source.names())}
    assert 4 <= sum(held.values()) <= 16
    for where in ({}, {"source": "a"}, {"source": "b"}):
        rows, skipped = labelled(source, "label", where)
        assert skipped == 0 and all(held[row] == is_held for row, _, is_held in rows)
    assert {name for _, name, _ in labelled(source)[0]} == {"cat", "dog"}  # things are too few
    assert len(labelled(source, "label", {"source": "b"})[0]) == 8
