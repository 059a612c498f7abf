"""The stage that fits a transform code, in place of a training loop: `kind="transform"`.

Windows come from photos, at many scales, and, for a share, from pages: pictures with text of the
user's own, else pages and charts that the project draws. A code that was fitted to photos alone
spends its classes on textures, and print then costs 1 to 2 dB.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.core.types import PATCH_SIZE, ViqError
from viq.data.batching.crops import Pictures
from viq.data.corpora.corpora import RowCorpus
from viq.data.corpora.held_out import is_held_out
from viq.data.corpora.photos import Photos
from viq.data.corpora.synthetic_corpus import SyntheticCorpus
from viq.image.patches import normalize, patchify
from viq.models.tokenizer.config import TokenizerConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_quantizer import PixelEncoder, TransformQuantizer
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.train.tokenizer.caption_embeddings import Sentences
from viq.train.tokenizer.pool_fit import PoolFitConfig, fit_pool
from viq.train.tokenizer.refinement_fit import RefinementFitConfig
from viq.train.tokenizer.semantic_fit import SemanticFitConfig, fit_semantic
from viq.train.tokenizer.transform_fit import (
    TransformFitConfig,
    fit_transform,
    windows_of,
)

_PHOTO_SCALES, _PAGE_SCALES = (0.7, 1.8), (1.0, 1.0)
_PAGES = 400  # pictures that windows of pages are taken from, at most
_PAGE_SIDES = (256, 640)  # px, of synthetic ones
_MEASURED = 4000  # windows over which values are scaled


def fit_tokenizer(
    config: TokenizerConfig,
    fit: TransformFitConfig,
    photos: Pictures,
    pages: Sequence[RowCorpus],
    semantic: SemanticFitConfig | None = None,
    pool: PoolFitConfig | None = None,
    sentences: str | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> VisualTokenizer:
    """A tokenizer whose code is fitted to pictures and whose decoder is its inverse.

    Args:
        photos: for most windows; synthetic scenes where there are none.
        pages: corpora, of which those with text are taken; synthetic pages where there are none.
        semantic: how meaning is fitted, where the config has it.
        pool: how the pooled token is, where the config has a text head.
        sentences: the model of sentences that this learns from, as `Sentences` takes it.

    Raises:
        ViqError: the pictures are too few or too small, or a pretrained network is missing.
    """
    # Before the code is fitted, which takes minutes.
    texts = Sentences(sentences) if config.text is not None else None
    network = EfficientNetLite0.from_package() if config.encoder.semantic or texts else None
    pages = [corpus for corpus in pages if not corpus.pictures_only]
    windows = gather_windows(fit, photos, pages)
    torch.manual_seed(fit.seed)
    tokenizer = VisualTokenizer(config)
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, TransformQuantizer):
        raise ViqError(f"{config.name}: a transform stage needs the bottleneck transform")
    code = fit_transform(windows, quantizer.code.config, fit, report)
    quantizer.code.load_state_dict(code.state_dict())
    some = windows[:_MEASURED]
    found = [quantizer.ids(patchify(normalize(window)), [(2, 2)]) for window in some]
    quantizer.fit_features(torch.cat(found))
    encoder = tokenizer.encoder
    if isinstance(encoder, PixelEncoder) and encoder.semantic is not None:
        meaning = replace(semantic or SemanticFitConfig(), model=encoder.semantic.config)
        fitted, reader = fit_semantic(_labelling(photos), meaning, network, report)
        encoder.semantic.load_state_dict(fitted.state_dict())
        assert quantizer.reader is not None
        quantizer.reader.load_state_dict(reader.state_dict())
    if texts is not None:
        fit_pool(tokenizer, _labelling(photos), texts, pool, network, report)
    return tokenizer.eval()


def _labelling(photos: Pictures) -> Iterator[Image.Image]:
    """Photos without those that `viq eval naming` asks about."""
    names = photos.names() if isinstance(photos, Photos) else []
    for index in range(len(photos)):
        if not names or not is_held_out(names[index]):
            yield photos[index]


def gather_windows(
    fit: TransformFitConfig, photos: Pictures, pages: Sequence[RowCorpus]
) -> np.ndarray:
    """Windows (n, 32, 32, 3) of photos and pages, in one random order; the same for one seed."""
    wanted = round(fit.windows * fit.page_ratio), round(fit.windows * (1 - fit.page_ratio))
    sources = [*pages_of(pages, fit.seed)], [*photos_of(photos, fit.seed)]
    found = []
    for count, pictures, scales in zip(wanted, sources, (_PAGE_SCALES, _PHOTO_SCALES), strict=True):
        found.append(windows_of(pictures, count, scales=scales, seed=fit.seed))
    windows = np.concatenate(found)
    return windows[np.random.default_rng(fit.seed).permutation(len(windows))]


def gather_crops(
    fit: RefinementFitConfig, photos: Pictures, pages: Sequence[RowCorpus]
) -> list[np.ndarray]:
    """Crops (H, W, 3), of whole patches, of photos at many scales and of pages; the same for one
    seed. A picture gives crops by its area."""
    pages = [corpus for corpus in pages if not corpus.pictures_only]
    rng, found = np.random.default_rng(fit.seed), []
    kinds = (
        (pages_of(pages, fit.seed), fit.page_ratio, _PAGE_SCALES),
        (photos_of(photos, fit.seed), 1 - fit.page_ratio, _PHOTO_SCALES),
    )
    for given, share, scales in kinds:
        if not (count := round(fit.crops * share)):
            continue
        pictures = list(given)
        areas = np.array([picture.width * picture.height for picture in pictures], float)
        for number in rng.choice(len(pictures), count, p=areas / areas.sum()):
            found.append(_crop(pictures[number], fit.crop, scales, rng))
    return found


def _crop(
    picture: Image.Image, side: int, scales: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Of a picture that is resized at random: `side` px, or what there is in whole patches."""
    scale = float(np.exp(rng.uniform(*np.log(scales))))
    if scale != 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize((max(1, size[0]), max(1, size[1])), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture.convert("RGB"))
    height, width = (min(side, length) // PATCH_SIZE * PATCH_SIZE for length in pixels.shape[:2])
    top = rng.integers(0, pixels.shape[0] - height + 1)
    left = rng.integers(0, pixels.shape[1] - width + 1)
    return pixels[top : top + height, left : left + width]


def photos_of(photos: Pictures, seed: int) -> Iterator[Image.Image]:
    """All photos; synthetic scenes where there are none."""
    if len(photos):
        yield from (photos[index] for index in range(len(photos)))
    else:
        yield from _synthetic(("scene", "gradient"), seed)


def pages_of(corpora: Sequence[RowCorpus], seed: int) -> Iterator[Image.Image]:
    """Some pictures of corpora, in random order; synthetic pages where there are none."""
    rng = random.Random(seed)
    places = [(corpus, index) for corpus in corpora for index in range(corpus.length)]
    if not places:
        yield from _synthetic(("text", "chart", "word"), seed)
    for corpus, index in rng.sample(places, min(_PAGES, len(places))):
        try:
            yield from corpus.example(index, rng).pictures
        except ViqError:
            continue  # a bad row is told of where rows are trained on


def _synthetic(kinds: tuple[str, ...], seed: int) -> Iterator[Image.Image]:
    corpora = [SyntheticCorpus(kind, "train", sides=_PAGE_SIDES, seed=seed) for kind in kinds]
    for index in range(_PAGES // len(kinds)):
        for corpus in corpora:
            yield corpus.example(index, random.Random(f"{seed} {index}")).pictures[0]
