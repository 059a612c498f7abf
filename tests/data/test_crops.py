"""Training crops are a function of seed and step alone."""

import tiny
import torch

from viq.data.batching.crops import CropConfig, make_batch

PHOTOS = [tiny.picture(seed, 90, 120) for seed in range(4)]


def test_batches_depend_on_seed_and_step_alone() -> None:
    config = CropConfig(sides={2: 1, 5: 1, 12: 0.5}, patches_per_group=16, patches_per_step=60)
    ahead = [make_batch(PHOTOS, config, 7, step) for step in range(3, 6)]
    for step, crop in zip(range(3, 6), ahead, strict=True):
        again = make_batch(PHOTOS, config, 7, step)
        assert torch.equal(crop.batch.patches_TD, again.batch.patches_TD)
        assert crop.batch.grids_hw == again.batch.grids_hw
        assert len(crop.mask_TD) >= 60
        assert float(crop.batch.patches_TD.abs().max()) <= 1
        assert crop.batch.patches_TD[crop.mask_TD == 0].abs().sum() == 0  # padding is mid-grey
    other = make_batch(PHOTOS, config, 8, 3)
    assert not torch.equal(other.batch.patches_TD[:16], ahead[0].batch.patches_TD[:16])


def test_without_photos_crops_are_drawn() -> None:
    config = CropConfig(sides={1: 1}, patches_per_group=4, patches_per_step=8, ragged_share=0)
    crop = make_batch([], config, 0, 0)
    assert len(crop.sizes) >= 8 and float(crop.mask_TD.min()) == 1
