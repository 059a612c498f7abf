"""Golden weights as a published file holds them, and the model folder that they become."""

from pathlib import Path

import pytest
import torch
from official_weights import fixture
from torch import Tensor

from viq.jobs.convert import convert


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """What a published file holds, tiny."""
    drawer = fixture("drawer_tiny", "weights")
    vae = {key: tensor for key, tensor in drawer.items() if key.startswith("vae_")}
    return fixture("encoder_tiny", "weights") | vae


@pytest.fixture(scope="module")
def converted(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    torch.save(weights, folder / "model_viq_fsq_64k.pth")
    convert(folder / "model_viq_fsq_64k.pth", folder / "out", heads=4)
    return folder / "out"
