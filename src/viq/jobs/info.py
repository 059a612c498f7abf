"""What is this: a model, a store or Parquet file of codes, or a single .viq file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from viq.core.codes import Codes
from viq.core.counts import codes_counted
from viq.core.files import BUNDLED, bundled, read_bytes, require_regular
from viq.core.remote import Location, location, suffix_of
from viq.core.types import CodesError
from viq.core.untrusted import CONFIG_BYTES, parse_json, printable
from viq.metrics.codebook import code_counts, summarize_counts
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.quantizer import QuantizerHead
from viq.store.folder import (
    PARQUET,
    SINGLE,
    Store,
    is_store,
    read_single,
)
from viq.weights.checkpoint import CheckpointError, read_config
from viq.weights.hub import locate

CARD = "README.md"  # of a bundled model; its metadata hold a line `summary`


def describe(what: str) -> dict[str, Any]:
    """Facts about a model or a file of codes, JSON-able.

    Raises:
        ViqError: neither a model nor a readable file of codes.
    """
    path = location(what)
    if isinstance(path, str):
        return {"kind": "codes" if suffix_of(path) == PARQUET else "store of codes", **_store(path)}
    if path.suffix == SINGLE:
        return {"kind": "codes of one image", **_single(read_single(path))}
    if path.is_file() or (path.suffix == PARQUET and not path.is_dir()):
        return {"kind": "codes", **_counted(Store(path))}
    if is_store(path):
        return {"kind": "store of codes", **_store(path)}
    folder = locate(what)
    if "embedder_config" in (config := read_config(folder)):
        try:
            return {"kind": "language model on codes", **_mllm(folder, config)}
        except (KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: not a whole language model ({type(error).__name__}: "
                f"{printable(str(error), 80)}); copy it again"
            ) from None
    return {"kind": "tokenizer", **_model(what)}


def bundled_models() -> list[dict[str, Any]]:
    """Name, kind, parameters, bytes, and purpose of each model that comes with the package."""
    return [_bundled(folder) for folder in sorted(BUNDLED.iterdir()) if (folder / CARD).is_file()]


def _bundled(folder: Path) -> dict[str, Any]:
    facts = describe(folder.name)
    parameters = facts["parameters"]  # of a language model, by its parts
    return {
        "name": folder.name,
        "kind": facts["kind"],
        "parameters": sum(parameters.values()) if isinstance(parameters, dict) else parameters,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "for": purpose_of(folder.name),
    }


def purpose_of(name: str) -> str:
    """What a bundled model is for, in one line, as its card says; "" of any other."""
    folder = bundled(name)
    if folder is None or not (folder / CARD).is_file():
        return ""
    return yaml.safe_load((folder / CARD).read_text("utf-8").split("---")[1])["summary"]


def _model(name: str) -> dict[str, Any]:
    tokenizer = load(name)
    config = tokenizer.config
    head = tokenizer.quantizer
    return {
        "name": config.name,
        "fingerprint": tokenizer.fingerprint,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "width": config.encoder.width,
        "depth": config.encoder.depth,
        "heads": config.encoder.heads,
        "patch_size": config.encoder.patch_size,
        "bottleneck": config.quantizer.bottleneck,
        "levels": list(config.quantizer.levels),
        "codebook": int(np.prod(config.quantizer.levels)),
        "codes_per_patch": 4,
        "bits_per_pixel": 4 * 16 / config.encoder.patch_size**2,
        "tile": config.tile,
        "variable_rate": tokenizer.refinement is not None,
        "pixel_decoder": tokenizer.decoder is not None,
        "latent_head": tokenizer.latent_head is not None,
        **({"restore_megaflops_per_patch": {
            "folded": head.dequantize_flops(folded=True) / 1e6,
            "unfolded": head.dequantize_flops(folded=False) / 1e6,
        }} if isinstance(head, QuantizerHead) else {}),
    }  # fmt: skip


def _mllm(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """From the config and the head of the weights, without loading them."""
    language, embedder = config["text_config"], config["embedder_config"]
    sizes: dict[str, int] = {"embedder": 0, "projector": 0, "language": 0}
    for path in folder.glob("*.safetensors"):
        require_regular(path)
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = name.partition(".")[0]
                sizes[part] = sizes.get(part, 0) + math.prod(file.get_slice(name).get_shape())
    processor = folder / "processor_config.json"
    limits = {}
    if processor.is_file():
        limits = parse_json(read_bytes(processor, CONFIG_BYTES), str(processor))
    return {
        "tokenizer": embedder["tokenizer"],
        "fingerprint": embedder["fingerprint"],
        "parameters": sizes,
        "language": language["model_type"],
        "width": language["hidden_size"],
        "depth": language["num_hidden_layers"],
        "vocabulary": language["vocab_size"],
        "merge_size": config["merge_size"],
        "max_pixels": limits.get("max_pixels"),
    }


def _single(codes: Codes) -> dict[str, Any]:
    return {
        "height": codes.size[0],
        "width": codes.size[1],
        "rows": codes.grid[0],
        "cols": codes.grid[1],
        "codes": codes.total,
        "bytes": codes.nbytes,
        "bits_per_pixel": round(8 * codes.nbytes / (codes.size[0] * codes.size[1]), 4),
        **_counts([codes]),
        "tile": codes.tile,
        "fingerprint": codes.fingerprint,
        "dtype": codes.dtype,
        "different_codes": len(np.unique(codes.ids)),
    }


def _counts(codes: Sequence[Codes]) -> dict[str, Any]:
    """How many codes patches have, where they have counts."""
    counts = [codes_counted(item.counts.ravel()) for item in codes if item.counts is not None]
    if not counts:
        return {}
    found = np.concatenate(counts)
    return {
        "refinement": codes[0].refinement,
        "extra_codes": sum(len(item.extra) for item in codes),
        "palettes": sum(int(item.palettes.sum()) for item in codes),
        "codes_per_patch": {
            "least": int(found.min()),
            "mean": round(float(found.mean()), 3),
            "greatest": int(found.max()),
        },
    }


def _store(path: Location) -> dict[str, Any]:
    """From the index alone, so at once, whatever the size; without one, from all rows."""
    store = Store(path)
    if not store.has_index:
        return {"shards": len(store.shards), **_counted(store)}
    totals = store.index.totals
    missing = {"failures", "rows", "images", "pixels", "codes", "bytes"} - totals.keys()
    if missing:
        raise CodesError(
            f"{path}: its index does not say how many {min(missing)} there are; write a new one "
            "with viq store index"
        )
    return {
        "model": store.info.model,
        "fingerprint": store.info.fingerprint,
        "dtype": store.info.dtype,
        **({"refinement": store.info.refinement} if store.info.refinement else {}),
        "levels": list(store.info.levels),
        "options": dict(store.index.options),
        "columns": dict(store.index.columns),
        "shards": len(store.shards),
        "inputs": store.index.inputs,
        "failures": totals["failures"],
        "rows": totals["rows"],
        "images": totals["images"],
        "megapixels": round(totals["pixels"] / 1e6, 3),
        "codes": totals["codes"],
        "bytes_of_codes": 2 * totals["codes"],
        "bytes_of_files": totals["bytes"],
    }


def _counted(store: Store) -> dict[str, Any]:
    """From all rows, for files that no index describes."""
    info = store.info
    pixels, codes_total, sizes, counted = 0, 0, [], list[Codes]()
    counts = None
    for _, codes in store:
        pixels += codes.size[0] * codes.size[1]
        codes_total += codes.total
        counted += [codes] if codes.counts is not None else []
        sizes.append(codes.size)
        if info.levels:
            found = code_counts(codes.ids, info.levels)
            counts = found if counts is None else counts + found
    areas = [height * width for height, width in sizes]
    facts: dict[str, Any] = {
        "model": info.model,
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        "levels": list(info.levels),
        "images": len(sizes),
        "megapixels": round(pixels / 1e6, 3),
        "codes": codes_total,
        "bytes_of_codes": 2 * codes_total,
        "bytes_of_file": sum(shard.bytes for shard in store.shards),
        "ratio_to_rgb": round(3 * pixels / (2 * codes_total), 2) if codes_total else None,
        **_counts(counted),
    }
    if sizes:
        facts["smallest"] = list(sizes[int(np.argmin(areas))])
        facts["largest"] = list(sizes[int(np.argmax(areas))])
    if counts is not None:
        use = summarize_counts(counts, info.levels)
        facts["code_use"] = {k: v for k, v in use.items() if k != "levels"}
    return facts
