"""Pages from the templates beside this file; whatever they are given is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from viq.web.state import State, state_of

FOLDER = Path(__file__).parent


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """The page of a template, with what every page shows."""
    html = _environment().get_template(template).render(
        values, state=state_of(request), csrf=request.state.csrf, path=request.url.path,
        known=request.state.known,
    )  # fmt: skip
    return HTMLResponse(html, status)


def prepare() -> None:
    """Compile all templates, so that no visitor waits for it."""
    for name in _environment().list_templates(["html"]):
        _environment().get_template(name)


def views(state: State) -> list[tuple[str, str]]:
    """Address and name of each view that this server has."""
    found = [("/", "Picture")]
    if state.config.chat is not None:
        found.append(("/ask", "Ask"))
    if state.config.draw is not None:
        found.append(("/draw", "Draw"))
    if state.stores:
        found.append(("/store", "Store"))
    if state.config.runs:
        found.append(("/runs", "Runs"))
    return found


@cache
def _environment() -> Environment:
    made = Environment(
        # Those of the report, too: a run looks the same here and there.
        loader=FileSystemLoader([FOLDER / "templates", FOLDER.parent / "report" / "templates"]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals.update(views=views)
    return made
