"""A refinement is fitted to crops of pictures: the same each time, or refused in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
from refined import REFINEMENT, pictures, plain_tokenizer, refined_tokenizer

from viq.codec.range_coder import TOTAL
from viq.core.types import ViqError
from viq.train.tokenizer.refinement_fit import RefinementFitConfig, fit_refinement, refined
from viq.train.tokenizer.transform_stage import gather_crops

FIT = RefinementFitConfig(crops=7, crop=64, page_ratio=0.0, patches=40)


def test_crops_are_whole_patches_and_the_same_for_one_seed() -> None:
    photos = pictures(4)
    found = gather_crops(FIT, photos, ())
    assert len(found) == 7
    assert all(crop.shape[0] % 16 == crop.shape[1] % 16 == 0 for crop in found)
    assert max(max(crop.shape) for crop in found) == 64
    again = gather_crops(FIT, photos, ())
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    other = gather_crops(replace(FIT, seed=1), photos, ())
    assert not all(np.array_equal(a, b) for a, b in zip(found, other, strict=True))


def test_frequencies_sum_to_the_whole_and_signs_are_halves() -> None:
    refinement = refined_tokenizer().refinement
    assert refinement is not None
    stream = refinement.stream()
    sizes = np.diff(stream.starts)
    assert (stream.starts[..., -1] == TOTAL).all() and (stream.mode_starts[..., -1] == TOTAL).all()
    assert (sizes > 0).all() and (sizes[..., 1:] % 2 == 0).all()
    basis = refinement.basis
    assert np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-4)


def test_fitting_twice_gives_one_refinement() -> None:
    crops = [np.asarray(picture) for picture in pictures(3)]
    first, second = (fit_refinement(plain_tokenizer(), crops, REFINEMENT, FIT) for _ in range(2))
    for name, value in first.state_dict().items():
        assert np.array_equal(value.numpy(), second.state_dict()[name].numpy()), name
    # One that is there already makes no difference.
    again = refined(refined_tokenizer(), crops, REFINEMENT, FIT)
    assert again.refinement is not None
    assert np.array_equal(again.refinement.basis.numpy(), first.basis.numpy())


def test_what_cannot_be_fitted_is_said() -> None:
    crop = np.asarray(pictures(1)[0])
    with pytest.raises(ViqError, match="a refinement needs a transform code and a decoder"):
        fit_refinement(tiny.tokenizer(), [crop], REFINEMENT)
    with pytest.raises(ViqError, match="no crop of 64 px a side"):
        fit_refinement(plain_tokenizer(), [crop[:48]], REFINEMENT)
    with pytest.raises(ViqError, match="crops of at least 64 px"):
        RefinementFitConfig(crop=32)
