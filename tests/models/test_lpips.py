"""LPIPS by the real torchmetrics, over a network of AlexNet's layers with random weights: those of
ImageNet are fetched, and the torchvision that builds it is of gigabytes where torch is for CUDA."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from viq.core.types import ViqError
from viq.models.vision.lpips import load_lpips


def _alexnet(weights: Any) -> Any:
    def conv(a: int, b: int, size: int, **more: Any) -> list[Any]:
        return [nn.Conv2d(a, b, size, **more), nn.ReLU()]

    pool = nn.MaxPool2d(3, 2)
    torch.manual_seed(0)
    layers = [*conv(3, 64, 11, stride=4, padding=2), pool, *conv(64, 192, 5, padding=2), pool]
    layers += [*conv(192, 384, 3, padding=1), *conv(384, 256, 3, padding=1)]
    return SimpleNamespace(features=nn.Sequential(*layers, *conv(256, 256, 3, padding=1), pool))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torchmetrics")
    module: Any = ModuleType("torchvision")
    named = SimpleNamespace(DEFAULT=None)
    module.models = SimpleNamespace(alexnet=_alexnet, AlexNet_Weights=named, VGG16_Weights=named)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    utilities = "torchmetrics.functional.image.lpips", "torchmetrics.image.lpip"
    for name in utilities:
        __import__(name)
        monkeypatch.setattr(sys.modules[name], "_TORCHVISION_AVAILABLE", True)
    return module


def test_distances_of_pictures(torchvision: Any) -> None:
    network = load_lpips("alex")
    torch.manual_seed(1)
    real = torch.rand(2, 3, 64, 80) * 2 - 1
    painted = (real + 0.2 * torch.randn_like(real)).requires_grad_()
    distances = network(painted, real)
    assert distances.shape == (2, 1, 1, 1) and bool((distances > 0).all())
    assert not network(real, real).any()
    torch.testing.assert_close(network(real, painted), distances)
    worse = network(real + 0.5 * torch.randn_like(real), real)  # beyond [-1, 1], as paint may be
    assert bool((worse > distances).all())
    distances.sum().backward()
    assert painted.grad is not None and bool(painted.grad.any())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_what_is_missing_is_one_line(torchvision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(weights: Any) -> Any:
        raise OSError("no network\nat all")

    torchvision.models.vgg16 = offline
    with pytest.raises(ViqError, match=r"^[^\n]*no network\)[^\n]*vgg16[^\n]*$"):
        load_lpips("vgg")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ViqError, match=r"^[^\n]*torchvision that belongs to torch \d[^\n]*$"):
        load_lpips("alex")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    with pytest.raises(ViqError, match=r"LPIPS distance needs torchmetrics: .*'viq\[lpips\]'$"):
        load_lpips("alex")
