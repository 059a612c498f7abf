"""Answers of pieces of work: where to read their events, and these, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from viq.web.state import State, state_of
from viq.web.work import Work


def begun(work: Work) -> JSONResponse:
    """Where the events of a piece of work are."""
    return JSONResponse({"work": f"/work/{work.id}"}, 202)


def work_of(request: Request, name: str) -> Work:
    """A piece of work of this visitor; else there is nothing here."""
    try:
        return state_of(request).queue.get(name, request.state.visitor)
    except KeyError:
        raise HTTPException(404) from None


def event_stream(state: State, work: Work) -> StreamingResponse:
    """Its events as they come."""

    async def lines() -> AsyncIterator[str]:
        async for event in state.queue.events(work):
            yield json.dumps(event) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")
