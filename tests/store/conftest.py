"""A tiny tokenizer, pictures and codes that tests of stores share."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import object_store
import pytest
import tiny
from code_stores import write_store
from killed_runs import BROKEN, INPUTS
from PIL import Image

from viq.models.tokenizer.tokenizer import VisualTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store"), [30, 0, 25, 300, 1])


@pytest.fixture(params=["fork", "forkserver"])
def start(request: pytest.FixtureRequest) -> Iterator[str]:
    """How processes begin: as a copy, or anew, with what they are sent (Linux from Python 3.14)."""
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {request.param} here")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(INPUTS):
        height, width = rng.integers(8, 60, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.save(folder / f"{i:03}.png")
    for i in range(0, INPUTS, INPUTS // BROKEN):
        (folder / f"{i:03}.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty bucket; what is fetched of it is kept in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch, object_store.s3() as url:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield url


@pytest.fixture(params=["s3", "gs", "hf"])
def cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of an empty place of each kind of store that is written to."""
    with pytest.MonkeyPatch.context() as patch, object_store.STORES[request.param]() as url:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield url
