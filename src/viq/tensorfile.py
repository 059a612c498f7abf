"""Files of named tensors that others wrote: safetensors, shards of it, and torch.save.

Nothing is ever unpickled beyond plain tensors.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from viq.checkpoint import CheckpointError, read_weights

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_INDEX = ".index.json"  # how the name of a list of shards ends


def read_tensors(path: Path) -> Mapping[str, Any]:
    """The top-level dictionary of a weight file, or of the shards that an index lists.

    Tensors of torch.save stay on disk where possible. Its dictionary may hold other plain values.

    Raises:
        CheckpointError: missing, damaged, no dictionary, or it asks for more than tensors.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        # Only files since torch 1.6 are zip archives, which can be mapped.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise CheckpointError(
                f"{path}: refused, because it asks for {wanted.group(1)}, which is no tensor and "
                "could run code; get the published file, or save the bare tensors as .safetensors"
            ) from None
        raise CheckpointError(
            f"{path}: not a whole file of torch.save (nothing in it was run); download it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a dictionary of named tensors"
        )
    return content


def _read_shards(path: Path) -> dict[str, Any]:
    try:
        places: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({Path(name).name for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: no readable list of shards ({error}); copy it again"
        ) from None
    tensors = {}
    for shard in shards:
        tensors |= read_tensors(path.with_name(shard))
    if absent := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(
            f"{path}: lists {len(absent)} tensors that no shard holds, such as {absent[0]}; "
            "download the shards again"
        )
    return tensors
