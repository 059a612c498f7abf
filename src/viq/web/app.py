"""The application: views, static files, and errors as one line in a page.

    app = make_app(WebConfig(stores=("codes",)))

Nothing that a page needs comes from anywhere else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from viq.core.errors import ViqError
from viq.core.untrusted import printable
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.web import ask_routes, draw_routes, picture_routes, rendering, run_routes, store_routes
from viq.web.config import WebConfig
from viq.web.guard import Guard, Keys, TooLarge
from viq.web.rendering import FOLDER, page
from viq.web.state import State

_WORDS = {
    404: "There is nothing here. It may have made room for newer pictures.",
    405: "Nothing can be sent here.",
    422: "That is no value this page takes.",
}


def make_app(config: WebConfig, tokenizer: VisualTokenizer | None = None) -> FastAPI:
    """The application of `viq web`.

    Args:
        tokenizer: in place of loading the one that the config names.

    Raises:
        ViqError: the model or a store cannot be opened.
    """
    state = State(config, tokenizer)
    rendering.prepare()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for opened in state.stores:
            Thread(target=opened.prepare, daemon=True, name="viq-web-prepare").start()
        yield
        state.close()

    # No pages of documentation: those of FastAPI fetch scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
                  redirect_slashes=False)  # fmt: skip
    app.state.viq = state
    app.state.keys = Keys(config.token)
    app.add_middleware(Guard, config=config, keys=app.state.keys)
    for routes in (picture_routes, ask_routes, draw_routes, store_routes, run_routes):
        app.include_router(routes.router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    app.add_exception_handler(StarletteHTTPException, _told)
    app.add_exception_handler(RequestValidationError, _told)
    app.add_exception_handler(ViqError, _told)
    app.add_exception_handler(TooLarge, _told)
    return app


async def _told(request: Request, error: Exception) -> Response:
    """An error as one line: of a page, or of JSON where a script asked."""
    code, words = 400, printable(str(error), 500)
    if isinstance(error, StarletteHTTPException):
        code = error.status_code
        words = _WORDS.get(code, error.detail)
    elif isinstance(error, RequestValidationError):
        code, words = 422, _WORDS[422]
    elif isinstance(error, TooLarge):
        code, words = 413, "That is more than this server takes; make the picture smaller."
    if "text/html" in request.headers.get("accept", ""):
        return page(request, "error.html", code, words=words)
    return JSONResponse({"error": words}, code)
