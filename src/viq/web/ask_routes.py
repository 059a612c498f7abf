"""The ask view: a conversation about a picture."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from viq.core.errors import ViqError
from viq.jobs.info import purpose_of
from viq.web.picture_routes import choice, seen_of
from viq.web.rendering import page
from viq.web.state import State, state_of
from viq.web.streams import begun
from viq.web.work import Work

router = APIRouter()


@router.get("/ask")
async def choose(request: Request) -> Response:
    _require(request)
    return choice(request, "/ask/")


@router.get("/ask/{name}")
async def talk(request: Request, name: str) -> Response:
    state, seen = _require(request), seen_of(request, name)
    turns = state.turns(request.state.visitor, seen.id)
    return page(request, "ask.html", seen=seen, turns=list(turns), about=_about(state))


@router.post("/ask/{name}")
async def ask(request: Request, name: str) -> Response:
    """A question; gives the address of the answer."""
    state, seen, limits = _require(request), seen_of(request, name), state_of(request).config.limits
    form = await request.form(max_files=0, max_fields=4, max_part_size=4 * limits.question + 1024)
    question = str(form.get("question", "")).strip()
    if not question:
        raise ViqError("ask something first")
    if len(question) > limits.question:
        raise ViqError(f"a question has up to {limits.question:,} characters")
    turns = state.turns(request.state.visitor, seen.id)
    if len(turns) >= 2 * limits.turns:
        raise ViqError(f"a conversation has up to {limits.turns} questions; begin a new one")

    def do(work: Work) -> dict[str, Any]:
        from viq.web.asking import Talker

        chat = state.config.chat
        work.tell(stage="reading the picture")
        talker = state.part("talker", lambda: Talker(chat or "", state.config.device))
        said = talker.answer(seen, turns, question, limits.answer_tokens, work)
        if said:  # no turn may be empty
            turns.extend([{"role": "user", "content": question},
                          {"role": "assistant", "content": said}])  # fmt: skip
        return {"answer": said}

    return begun(state.queue.add(request.state.visitor, do))


@router.post("/ask/{name}/new")
async def begin(request: Request, name: str) -> Response:
    state, seen = _require(request), seen_of(request, name)
    state.turns(request.state.visitor, seen.id).clear()
    return RedirectResponse(f"/ask/{seen.id}", 303)


def _require(request: Request) -> State:
    state = state_of(request)
    if state.config.chat is None:
        raise HTTPException(404)
    return state


def _about(state: State) -> str:
    """What to expect of the model, as its card says; "" where that is not known."""
    chat = state.config.chat or ""
    return f"{chat}: {purpose}." if (purpose := purpose_of(chat)) else ""
