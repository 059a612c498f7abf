"""Folders in the format of transformers, which may come from anybody.

transformers trusts them: it runs their code if allowed to, unpickles weights, downloads attention
kernels and base models that a config names, fills missing weights with noise, and builds whatever
a config asks for, however large. Here none of it is possible: safetensors only, no code, and a
model is built without memory first and must not have more parameters than its files hold.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from viq.core.errors import first_line
from viq.core.files import require_regular
from viq.core.quiet import quiet
from viq.core.types import ViqError
from viq.core.untrusted import INDEX_BYTES, printable
from viq.weights import checkpoint
from viq.weights.checkpoint import CheckpointError, building, read_config, shapes_in
from viq.weights.verify import verify_folder

LAYERS = 1024  # of anything, at most
_FEW = 2**20  # parameters that may be missing without being noticed here: they are listed later
_BUFFER_VALUES = 2**28  # of a model's fixed tables
_MANY = re.compile(r"(num|n|decoder|encoder)_.*(layers?|blocks?)|depth|.*_depth")


def load_pretrained(
    load: Callable[..., Any],
    build: Callable[[Any], Any],
    name: str | os.PathLike[str],
    configs: Any = None,
    **options: Any,
) -> Any:
    """What `load` (a `from_pretrained`) gives for a folder or hub id, with every weight it needs.

    Args:
        build: makes the same model of its config alone.
        configs: class of the config; None: the one that its model_type tells.
        options: of `load`.

    Raises:
        CheckpointError: it is not usable, or not whole; one line that names it.
    """
    try:
        if Path(name).is_dir():
            _require_fits(Path(name), build, configs)
            verify_folder(Path(name))
        with quiet():
            options |= {"use_safetensors": True, "output_loading_info": True}
            model, report = load(str(name), **options)
    except CheckpointError as error:
        where = "" if str(error).startswith(str(name)) else f"{name}: "
        raise CheckpointError(f"{where}{error}") from None
    except Exception as error:  # what damage makes transformers raise is anyone's guess
        raise CheckpointError(f"{name}: {first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):  # transformers fills them with noise
        raise CheckpointError(
            f"{name}: {len(missing)} weights are missing, such as {printable(missing[0], 100)}; "
            "copy the folder again"
        )
    return model


def load_local_model(folder: str | os.PathLike[str]) -> Any:
    """The model of a folder, without a head, in float32; nothing is fetched.

    Raises:
        CheckpointError: as `load_pretrained`.
    """
    import torch
    from transformers import AutoModel

    return load_pretrained(
        AutoModel.from_pretrained,
        lambda config: AutoModel.from_config(config, trust_remote_code=False),
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
    )


def checked_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder, and a look at the other files that are read with it.

    Raises:
        CheckpointError: too large, or it asks for what a folder may not ask for; names it.
    """
    for path in folder.glob("*.json"):
        try:
            require_regular(path)
        except (OSError, ViqError) as error:
            raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
        if path.stat().st_size > INDEX_BYTES:
            raise CheckpointError(f"{path}: has more than {INDEX_BYTES:,} bytes, as none needs")
    if (folder / "adapter_config.json").exists():  # which names a base model from anywhere
        raise CheckpointError(
            f"{folder}: holds adapters beside or instead of a model: merge them into it first"
        )
    config = read_config(folder)
    where = str(folder / checkpoint.CONFIG_FILE)
    if "quantization_config" in config:
        raise CheckpointError(f"{where}: quantized weights are not supported; give plain ones")
    _look_at(config, where)
    return config


def _look_at(value: Any, where: str, name: str = "") -> None:
    """Refuse numbers that no model has, and kernels from elsewhere, at any depth of a config."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _look_at(inner, where, str(key))
    elif isinstance(value, list):
        for inner in value:
            _look_at(inner, where, name)
    elif isinstance(value, str) and name.endswith("implementation"):
        if not re.fullmatch(r"\w*", value):
            raise CheckpointError(
                f"{where}: {name} {printable(value, 80)!r} is code from elsewhere"
            )
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = LAYERS if _MANY.fullmatch(name) else 2**36
        if not abs(value) <= most and not (isinstance(value, float) and math.isinf(value)):
            shown = printable(f"{name} {value!r:.60}", 100)
            raise CheckpointError(f"{where}: {shown} is more than {most:,}")


def _require_fits(folder: Path, build: Callable[[Any], Any], configs: Any) -> None:
    """See that the model of a folder's config is no larger than its weight files."""
    from transformers import AutoConfig

    checked_config(folder)
    config = (configs or AutoConfig).from_pretrained(str(folder), trust_remote_code=False)
    with building(str(folder / checkpoint.CONFIG_FILE)):
        model = build(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    files = sorted(folder.glob("*.safetensors"))
    held = sum(math.prod(shape) for file in files for shape in shapes_in(file).values())
    if not files:
        raise CheckpointError(
            f"{folder}: holds no weights in safetensors; other kinds are not read"
        )
    if wanted > 2 * held + _FEW or held > checkpoint.PARAMETERS:
        raise CheckpointError(
            f"{folder}: its config describes {wanted:,} parameters, but its files hold {held:,}: "
            "they belong to different models, or the folder is incomplete"
        )
    if sum(buffer.numel() for buffer in model.buffers()) > _BUFFER_VALUES:
        raise CheckpointError(f"{folder}: its config asks for tables of over {_BUFFER_VALUES:,}")


def causal_of(config: Any) -> Any:
    """A causal language model of a config, with new weights; never with code of its own.

    Raises:
        CheckpointError: the config is of a multimodal model on codes.
    """
    from transformers import AutoModelForCausalLM

    if config.model_type == "viq":  # which transformers knows once viq.mllm is imported
        raise CheckpointError("is a multimodal model on codes, not a language model")
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
