"""Files of named tensors that others wrote: safetensors, shards of it, and torch.save.

Nothing is ever unpickled beyond plain tensors, which together are at most so much larger than
their file as `_SHARING` says.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from viq.core.files import require_regular
from viq.core.types import ViqError
from viq.core.untrusted import INDEX_BYTES, file_name
from viq.weights.checkpoint import CheckpointError, read_object, read_weights

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_INDEX = ".index.json"  # how the name of a list of shards ends
_SHARDS = 4096  # in a list at most
_SHARING = 4  # tensors that share memory, or repeat it, count each for itself


def read_tensors(path: Path) -> Mapping[str, Any]:
    """The top-level dictionary of a weight file, or of the shards that an index lists.

    Tensors of torch.save stay on disk where possible. Its dictionary may hold other plain values,
    and dictionaries of tensors in turn.

    Raises:
        CheckpointError: missing, damaged, no dictionary, or it asks for more than tensors.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        require_regular(path)
        # Only files since torch 1.6 are zip archives, which can be mapped.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, ViqError) as error:
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
    _require_held(content, path)
    return content


def _require_held(content: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that would be large in memory though their file is small: a pickle may
    describe one number as a matrix of any shape."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(content))
    if total > _SHARING * path.stat().st_size:
        raise CheckpointError(
            f"{path}: describes {total:,} bytes of tensors, which it does not hold"
        )


def _tensors_in(content: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors of a dictionary, and of the dictionaries and lists inside it.

    Without recursion: a pickle may nest dictionaries to any depth, even one in itself.
    """
    todo: list[Any] = [content]
    seen: set[int] = set()  # dictionaries and lists; tensors count as often as they are named
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, Mapping) else value


def _read_shards(path: Path) -> dict[str, Any]:
    try:
        places = read_object(path, INDEX_BYTES).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"{path}: no list of shards; copy it again")
        # Plain names, so files beside the list; the hub's cache makes links of them, which lead
        # out of the folder and may.
        shards = sorted({file_name(name, str(path)) for name in places.values()})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except TypeError:
        raise CheckpointError(f"{path}: no list of shards; copy it again") from None
    except ViqError as error:
        raise CheckpointError(str(error)) from None
    if len(shards) > _SHARDS or any(Path(name).suffix not in SUFFIXES for name in shards):
        raise CheckpointError(f"{path}: lists what are no shards: {', '.join(shards[:3])}")
    tensors: dict[str, Any] = {}
    for shard in shards:
        tensors |= read_tensors(path.with_name(shard))
    if absent := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(
            f"{path}: lists {len(absent)} tensors that no shard holds, such as {absent[0]}; "
            "download the shards again"
        )
    return tensors
