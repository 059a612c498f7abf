"""The runs view: curves, code use and pictures of training runs, refreshed while they train."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from viq.report.gallery_common import encoded
from viq.report.page import Picture
from viq.report.run_page import CURVES, newest_grid, section, table
from viq.report.runs import Run, read_run
from viq.web.rendering import page
from viq.web.state import state_of

router = APIRouter()
Number = Annotated[int, Path(ge=0, le=999)]


@dataclass(frozen=True)
class Link(Picture):
    """A picture at an address of its own."""


@router.get("/runs")
async def runs(request: Request) -> Response:
    state = state_of(request)
    if len(state.config.runs) == 1:
        return RedirectResponse("/runs/0", 303)
    named = list(zip(state.config.runs, state.run_names, strict=True))
    found = await run_in_threadpool(lambda: [replace(read_run(p), name=name) for p, name in named])
    return page(request, "runs.html", runs=found)


@router.get("/runs/{number}")
async def run(request: Request, number: Number) -> Response:
    return await _shown(request, number, "run.html")


@router.get("/runs/{number}/part")
async def part(request: Request, number: Number) -> Response:
    """What of the page changes; nothing if it has not changed since the ETag that was sent."""
    answer = await _shown(request, number, "run_part.html")
    tag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    answer.headers["ETag"] = tag
    return answer


@router.get("/runs/{number}/grid/{stage}")
async def grid(request: Request, number: Number, stage: Number) -> Response:
    """The newest sheet of originals above reconstructions of a stage, by its number."""

    def read() -> bytes:
        stages = read_run(_run(request, number)).stages
        newest = newest_grid(stages[stage]) if stage < len(stages) else None
        if newest is None:
            raise HTTPException(404)
        return encoded(newest[1], "WEBP", lossless=True)

    return Response(await run_in_threadpool(read), media_type="image/webp")


async def _shown(request: Request, number: int, template: str) -> Response:
    found, sections = await run_in_threadpool(_read, _run(request, number), number)
    found = replace(found, name=state_of(request).run_names[number])
    live = not all(stage.finished for stage in found.stages)
    return page(
        request, template, run=found, number=number, stages=sections, table=table(found),
        about_curves=CURVES, live=live,
    )  # fmt: skip


def _read(place: Folder, number: int) -> tuple[Run, list[dict[str, Any]]]:
    found = read_run(place)
    sections = []
    for at, stage in enumerate(found.stages):
        shown = section(stage)
        if shown["grid"] is not None:
            old = shown["grid"]
            address = f"/runs/{number}/grid/{at}?step={shown['grid_step'].replace(',', '')}"
            shown["grid"] = Link(address, old.width, old.height)
        sections.append(shown)
    return found, sections


def _run(request: Request, number: int) -> Folder:
    found = state_of(request).config.runs
    if number >= len(found):
        raise HTTPException(404)
    return found[number]
