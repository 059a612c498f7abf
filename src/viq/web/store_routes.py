"""The store view: pages, thumbnails, filters, searches, and checks of the whole store."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from viq.core.errors import ViqError
from viq.jobs.store.lint import lint
from viq.jobs.store.stats import stats
from viq.web import search
from viq.web.pictures import show_codes
from viq.web.rendering import page
from viq.web.state import State, state_of
from viq.web.stores import Filter, OpenStore
from viq.web.streams import begun
from viq.web.work import Work

router = APIRouter()
PAGE = 24  # rows
_FAILURES = 100  # of a page
_WAIT = 1.0  # seconds that a filter waits until a page says what it waits for
_CHECK_SECONDS = 3600.0  # that a check of a whole store may take
Store = Annotated[int, Path(ge=0, le=999)]
Row = Annotated[int, Path(ge=0)]
Words = Annotated[str, Query(max_length=200)]
_BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@router.get("/store")
async def stores(request: Request) -> Response:
    found = state_of(request).stores
    if len(found) == 1:
        return RedirectResponse("/store/0", 303)
    return page(request, "stores.html", stores=found)


@router.get("/store/{number}")
async def rows(
    request: Request,
    number: Store,
    at: Annotated[int, Query(ge=1)] = 1,
    key: Words = "",
    text: Words = "",
    least: Annotated[str, Query(max_length=9)] = "",
    most: Annotated[str, Query(max_length=9)] = "",
    show: Annotated[str, Query(max_length=9)] = "",
) -> Response:
    opened = _store(request, number)
    wanted = Filter(key, text, _px(least), _px(most), show == "empty")
    reading = False
    if show == "failed":
        failed, total = await run_in_threadpool(opened.failures, (at - 1) * _FAILURES, _FAILURES)
        listed, pages = [], -(-total // _FAILURES)
    elif wanted and not await run_in_threadpool(opened.await_filters, _WAIT):
        failed, listed, total, pages, reading = [], [], 0, 1, True
    else:
        failed, (listed, total) = [], await run_in_threadpool(_listed, opened, wanted, at)
        pages = -(-total // PAGE)
    asked = {"key": key, "text": text, "least": least, "most": most, "show": show}
    kept = urlencode({name: value for name, value in asked.items() if value})
    return page(
        request, "store.html", opened=opened, number=number, rows=listed, failed=failed,
        total=total, at=at, pages=max(1, pages), asked=asked, kept=kept, values=None, about="",
        growing=False, reading=reading,
    )  # fmt: skip


@router.get("/store/{number}/thumb/{row}")
async def thumbnail(request: Request, number: Store, row: Row) -> Response:
    opened, state = _store(request, number), state_of(request)
    try:
        async with state.decoding:
            data = await run_in_threadpool(opened.thumbnail, row, state.config.limits.max_pixels)
    except IndexError:
        raise HTTPException(404) from None
    kept = {"Cache-Control": "private, max-age=3600"}
    if data is None:
        return Response(_BLANK, media_type="image/svg+xml", headers=kept)
    return Response(data, media_type="image/webp", headers=kept)


@router.get("/store/{number}/row/{row}")
async def open_row(request: Request, number: Store, row: Row) -> Response:
    """The picture view of a row."""
    opened, state = _store(request, number), state_of(request)
    try:
        codes = await run_in_threadpool(opened.codes, row)
    except IndexError:
        raise HTTPException(404) from None
    if codes is None:
        raise ViqError("this row has no picture")
    if codes.size[0] * codes.size[1] > state.config.limits.max_pixels:
        raise ViqError("too large to show here; viq decode writes it")
    tokenizer, key = opened.require_tokenizer(), opened.rows([row])[0].key
    visitor = request.state.visitor
    work = Work(visitor, lambda work: {}, 0)  # nobody waits in a queue for one picture
    async with state.decoding:
        seen = await run_in_threadpool(show_codes, tokenizer, codes, key, visitor, work)
    state.shelf.add(seen)
    return RedirectResponse(f"/picture/{seen.id}", 303)


@router.post("/store/{number}/search")
async def find(request: Request, number: Store) -> Response:
    """Rows like a picture of this server or a row, or that fit a sentence."""
    opened, state = _store(request, number), state_of(request)
    form = await request.form(max_files=0, max_fields=6, max_part_size=4096)
    words, how = str(form.get("words", "")).strip()[:200], str(form.get("how", "codes"))
    like = str(form.get("like", ""))
    codes = None if how == "words" else await run_in_threadpool(_codes_like, state, opened, like)
    if how == "words" and not words:
        raise ViqError("write what to look for first")

    def do(work: Work) -> dict[str, Any]:
        if how == "codes" and codes is not None:
            found = search.by_codes(opened, codes, work)
        else:
            if codes is not None:
                vector = search.picture_vector(opened, codes)
            else:
                make = search.Sentences
                vector = search.text_vector(opened, words, state.part("sentences", make))
            search.await_vectors(opened.vectors(state.config.limits.search_rows), work)
            found = {"vector": vector}
        opened.results[f"search {work.id}"] = found
        _forget(opened)
        return {"page": f"/store/{number}/found/{work.id}"}

    return begun(state.queue.add(request.state.visitor, do))


@router.get("/store/{number}/found/{name}")
async def found(request: Request, number: Store, name: str) -> Response:
    opened, state = _store(request, number), state_of(request)
    answer = opened.results.get(f"search {name}")
    if answer is None:
        raise HTTPException(404)
    if "vector" in answer:  # by the vectors that are known by now
        vectors = opened.vectors(state.config.limits.search_rows)
        answer = await run_in_threadpool(search.by_vector, opened, answer["vector"], vectors)
    listed = await run_in_threadpool(opened.rows, answer["rows"])
    return page(
        request, "store.html", opened=opened, number=number, rows=listed, failed=[],
        total=len(listed), at=1, pages=1, kept="", values=answer["values"], about=answer["about"],
        growing=answer["growing"], reading=False,
        asked=dict.fromkeys(("key", "text", "least", "most", "show"), ""),
    )  # fmt: skip


@router.get("/store/{number}/check")
async def checks(request: Request, number: Store) -> Response:
    opened = _store(request, number)
    return page(
        request, "check.html", opened=opened, number=number, lint=opened.results.get("lint"),
        stats=opened.results.get("stats"),
    )  # fmt: skip


@router.post("/store/{number}/check/{what}")
async def check(request: Request, number: Store, what: str) -> Response:
    """Read all of a store: what is wrong with it, or how its codes use the codebook."""
    opened, state = _store(request, number), state_of(request)
    if what not in ("lint", "stats"):
        raise HTTPException(404)

    def do(work: Work) -> dict[str, Any]:
        job, done = (lint if what == "lint" else stats), 0
        unit = "files" if what == "lint" else "rows"
        total = len(opened.store.shards) if what == "lint" else len(opened)

        def progress() -> None:
            nonlocal done
            done += 1
            work.check()
            if what == "lint" or done % 5000 == 0:
                work.tell(stage=f"read {done:,} of {total:,} {unit}")

        opened.results[what] = job(opened.path, progress)
        return {"page": f"/store/{number}/check"}

    return begun(state.queue.add(request.state.visitor, do, _CHECK_SECONDS))


def _store(request: Request, number: int) -> OpenStore:
    found = state_of(request).stores
    if number >= len(found):
        raise HTTPException(404)
    return found[number]


def _listed(opened: OpenStore, wanted: Filter, at: int) -> tuple[list[Any], int]:
    """A page of rows, and how many there are in all."""
    first = (at - 1) * PAGE
    if not wanted:
        return opened.rows(range(min(first, len(opened)), min(first + PAGE, len(opened)))), len(
            opened
        )
    found = opened.matching(wanted)
    return opened.rows(np.asarray(found[first : first + PAGE]).tolist()), len(found)


def _codes_like(state: State, opened: OpenStore, like: str) -> Any:
    """The codes of a picture on the shelf, or of a row ("row 5")."""
    kind, _, name = like.rpartition(" ")
    try:
        codes = opened.codes(int(name)) if kind == "row" else state.shelf.get(like).codes
    except (KeyError, ValueError, IndexError):
        raise HTTPException(404) from None
    if codes is None:
        raise ViqError("this row has no picture")
    tokenizer = opened.tokenizer
    if tokenizer is not None and codes.fingerprint:
        tokenizer.require(codes.fingerprint)
    return codes


def _forget(opened: OpenStore, most: int = 50) -> None:
    names = [name for name in opened.results if name.startswith("search ")]
    for name in names[:-most]:
        del opened.results[name]


def _px(text: str) -> int:
    """A number of px of a form, 0 if none."""
    text = text.strip()
    if text and not (text.isascii() and text.isdigit()):
        raise ViqError(f"{text!r} is no number of px")
    return int(text or 0)
