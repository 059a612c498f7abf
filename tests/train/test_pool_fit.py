"""Fitting the pooled token: names of classes, nothing else changes, the same again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from viq.core.types import ViqError
from viq.core.untrusted import UntrustedError
from viq.data.synthetic.draw import draw
from viq.models.tokenizer.config import TextConfig
from viq.models.tokenizer.presets import tiny
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.train.tokenizer.pool_fit import PoolFitConfig, class_embeddings, class_names, fit_pool

CONFIG = PoolFitConfig(steps=8, images=3)
PHOTOS = [draw("scene", (48, 64 + 16 * (seed % 2)), seed).image for seed in range(5)]


def sentences(texts: Sequence[str]) -> Tensor:
    """Unit vectors (n, 12) that depend on the text alone."""
    seeds = [int.from_bytes(text.encode()[-6:], "big") for text in texts]
    rows = [torch.randn(12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return F.normalize(torch.stack(rows), dim=-1)


def tokenizer() -> VisualTokenizer:
    torch.manual_seed(0)
    model = VisualTokenizer(replace(tiny(), text=TextConfig(width=12)))
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0().requires_grad_(False).eval()


def test_names_are_of_the_thousand_classes() -> None:
    names = class_names()
    assert len(names) == 1000 and all(all(some) for some in names)
    assert names[0][0] == "tench" and names[-1][0] == "toilet tissue"
    found = class_embeddings(sentences)
    assert found.shape == (1000, 12)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(1000))


def test_it_learns_and_leaves_codes_and_features_alone(network: EfficientNetLite0) -> None:
    model, records = tokenizer(), list[dict[str, Any]]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_pool(model, PHOTOS, sentences, replace(CONFIG, steps=40), network, records.append)
    changed = {
        name.partition(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"pool_norm", "pool_head", "text_head"}
    assert records[-1]["loss/embedding"] < 0.6 * records[0]["loss/embedding"]
    assert not any(p.requires_grad for p in model.parameters())
    embeds = model.image_embeds(model.encode(PHOTOS))
    assert embeds.shape == (5, 12)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(5))


def test_the_same_again(network: EfficientNetLite0) -> None:
    one, two, other = tokenizer(), tokenizer(), tokenizer()
    fit_pool(one, PHOTOS, sentences, CONFIG, network)
    torch.rand(3)
    fit_pool(two, iter(PHOTOS), sentences, CONFIG, network)
    fit_pool(other, PHOTOS, sentences, replace(CONFIG, seed=1), network)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert not torch.equal(one.text_head.weight, other.text_head.weight)  # type: ignore[union-attr]


def test_what_cannot_be_is_said(network: EfficientNetLite0) -> None:
    with pytest.raises(ViqError, match="no photos"):
        fit_pool(tokenizer(), [], sentences, CONFIG, network)
    plain = VisualTokenizer(tiny()).requires_grad_(False).eval()
    with pytest.raises(ViqError, match="has no text head"):
        fit_pool(plain, PHOTOS, sentences, CONFIG, network)
    torch.manual_seed(0)
    wider = VisualTokenizer(replace(tiny(), text=TextConfig(width=13)))
    with pytest.raises(ViqError, match="have 12 numbers, but the text head of viq-tiny 13"):
        fit_pool(wider, PHOTOS, sentences, CONFIG, network)
    with pytest.raises(ViqError, match="maps no pictures to sentence embeddings"):
        plain.image_embeds(plain.encode(Image.fromarray(np.zeros((16, 16, 3), np.uint8))))


@pytest.mark.parametrize(
    "values",
    [{"steps": -1}, {"images": 0}, {"kept": 0.0}, {"kept": 1.5}, {"losses": {"style": 1.0}}],
)
def test_configs_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises((ValueError, UntrustedError, ViqError)):
        PoolFitConfig(**values)
