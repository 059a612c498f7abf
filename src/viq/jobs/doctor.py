"""Versions, devices, known traps, and what to install for what."""

from __future__ import annotations

import platform
from importlib import metadata, util
from typing import Any

_PACKAGES = ("torch", "numpy", "pillow", "safetensors", "huggingface_hub", "pyarrow")
_EXTRAS = {
    "train": ("accelerate", "viq train"),
    "data": ("datasets", "data sets of Hugging Face, and pictures at URLs"),
    "s3": ("s3fs", "stores and pictures at s3://"),
    "gs": ("gcsfs", "stores and pictures at gs://"),
    "codec": ("constriction", "compressed codes"),
    "vae": ("diffusers", "pixels from the latents of a converted official model"),
    "bench": ("transformers", "the NaFlex baseline of viq bench encode"),
    "demo": ("skimage", "sample photos for viq demo"),
    "ocr": ("rapidocr", "how legible text is: viq compare --ocr"),
    "lmms": ("lmms_eval", "the model viq of lmms-eval"),
}


def diagnose() -> dict[str, Any]:
    """Facts and advice; `traps` is empty when all is well."""
    import torch

    import viq
    from viq.core.files import BUNDLED

    return {
        "viq": viq.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(torch),
        "threads": torch.get_num_threads(),
        "bundled_models": sorted(p.name for p in BUNDLED.glob("*/") if p.is_dir()),
        "extras": {
            extra: f"installed, {what}" if util.find_spec(module)
            else f"pip install 'viq[{extra}]' for {what}"
            for extra, (module, what) in _EXTRAS.items()
        },
        "traps": _traps(torch),
    }  # fmt: skip


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _devices(torch: Any) -> dict[str, str]:
    devices = {"cpu": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            devices[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _traps(torch: Any) -> list[str]:
    traps = []
    vision = _version("torchvision")
    # A CUDA torchvision beside a CPU torch imports, then breaks transformers and diffusers.
    if vision != "missing" and ("+cu" in vision) != bool(torch.version.cuda):
        traps.append(
            f"torchvision {vision} does not match torch {torch.__version__}; other libraries "
            "fail with 'operator torchvision::nms does not exist': pip uninstall torchvision"
        )
    elif vision != "missing" and not torch.version.cuda and not _vision_loads():
        traps.append("torchvision is installed but does not load: pip uninstall torchvision")
    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
        traps.append(f"torch {torch.__version__} is older than 2.11: pip install 'torch>=2.11'")
    return traps


def _vision_loads() -> bool:
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception:
        return False
    return True
