"""A server of `viq web` for tests: within the process, and at a port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import web_stores
from web_client import Visitor, serving, visitor

from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer

pytest.importorskip("fastapi", reason="needs viq[web]")


@pytest.fixture(scope="session")
def tokenizer() -> VisualTokenizer:
    return load("viq-transform")


@pytest.fixture(scope="session")
def store(tokenizer: VisualTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return web_stores.write(tmp_path_factory.mktemp("web") / "codes", tokenizer)


@pytest.fixture(scope="session")
def app(tokenizer: VisualTokenizer, store: Path, debug_run: Path) -> Any:
    from viq.web.app import make_app
    from viq.web.config import Limits, WebConfig

    limits = Limits(upload_bytes=2**20, open_pixels=2_000_000, max_pixels=200_000, each=8)
    config = WebConfig(stores=(store,), runs=(debug_run,), limits=limits)
    return make_app(config, tokenizer)


@pytest.fixture
def client(app: Any) -> Iterator[Visitor]:
    """A new visitor."""
    with visitor(app) as found:
        yield found


@pytest.fixture(scope="session")
def served(tokenizer: VisualTokenizer, store: Path, debug_run: Path) -> Iterator[str]:
    """The address of a server."""
    from viq.web.app import make_app
    from viq.web.config import WebConfig

    app = make_app(WebConfig(stores=(store,), runs=(debug_run,)), tokenizer)
    with serving(app) as address:
        yield address
