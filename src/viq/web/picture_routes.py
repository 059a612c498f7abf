"""The picture view, the login, and the events of pieces of work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, RedirectResponse, Response

from viq.core.errors import ViqError
from viq.core.names import portable
from viq.report.samples import PICTURES, SAMPLES
from viq.web import patches
from viq.web.pictures import Seen, examine
from viq.web.rendering import page
from viq.web.state import state_of
from viq.web.streams import begun, event_stream, work_of
from viq.web.work import Work

router = APIRouter()
_KINDS = {"original": "png", "viq": "png", "jpeg": "jpeg", "webp": "webp"}
Place = Annotated[int, Path(ge=0, le=1 << 20)]


@router.get("/")
async def home(request: Request) -> Response:
    return choice(request, "/picture/")


@router.get("/login")
async def login(request: Request) -> Response:
    return page(request, "login.html", wrong=False)


@router.post("/login")
async def enter(request: Request) -> Response:
    form = await request.form(max_files=0, max_fields=4, max_part_size=4096)
    token, keys = form.get("token"), request.app.state.keys
    if not isinstance(token, str) or not keys.opens(token):
        return page(request, "login.html", 403, wrong=True)
    answer = RedirectResponse("/", 303)
    answer.headers.append("Set-Cookie", keys.cookie(request.state.visitor, True))
    return answer


@router.get("/sample/{name}")
async def sample(name: str) -> Response:
    return Response(_sample(name)[0], media_type="image/png" if name in _DRAWN else "image/jpeg")


@router.post("/picture")
async def bring(request: Request) -> Response:
    """A picture, or the name of a sample; gives the address of the work."""
    state, visitor = state_of(request), request.state.visitor
    form = await request.form(max_files=1, max_fields=4, max_part_size=4096)
    given = form.get("file")
    if isinstance(given, UploadFile):
        data, name = await given.read(), given.filename or "picture"
    else:
        data, name = _sample(str(form.get("sample", "")))
    await form.close()
    if not data:
        raise ViqError(f"{name}: is empty; choose a picture")

    def do(work: Work) -> dict[str, Any]:
        seen = examine(state.tokenizer, data, name, visitor, state.config.limits, work)
        state.shelf.add(seen)
        return {"picture": seen.id}

    return begun(state.queue.add(visitor, do))


@router.get("/work/{name}")
async def events(request: Request, name: str) -> Response:
    return event_stream(state_of(request), work_of(request, name))


@router.post("/work/{name}/stop")
async def stop(request: Request, name: str) -> Response:
    work = work_of(request, name)
    state_of(request).queue.cancel(work)
    return JSONResponse({"stopped": True})


@router.get("/picture/{name}")
async def picture(request: Request, name: str) -> Response:
    seen = seen_of(request, name)
    bits = None
    if seen.bits is not None:
        bits = {"least": seen.bits.min(), "most": seen.bits.max(), "mean": seen.bits.mean()}
    return page(request, "picture.html", seen=seen, bits=bits)


@router.get("/picture/{name}/file/{file}")
async def picture_file(request: Request, name: str, file: str) -> Response:
    seen = seen_of(request, name)
    if file not in seen.files:
        raise HTTPException(404)
    return _kept(seen.files[file], f"image/{_KINDS[file]}")


@router.get("/picture/{name}/codes.viq")
async def codes(request: Request, name: str) -> Response:
    seen = seen_of(request, name)
    return _download(seen.codes.to_bytes(), "application/octet-stream", seen, "viq")


@router.get("/picture/{name}/decoded.png")
async def decoded(request: Request, name: str) -> Response:
    seen = seen_of(request, name)
    return _download(seen.files["viq"], "image/png", seen, "png")


@router.get("/picture/{name}/bits.png")
async def bits(request: Request, name: str) -> Response:
    seen = seen_of(request, name)
    try:
        return _kept(await run_in_threadpool(patches.bits_map, seen), "image/png")
    except KeyError:
        raise HTTPException(404) from None


@router.get("/picture/{name}/patch/{row}/{col}")
async def patch(request: Request, name: str, row: Place, col: Place) -> Response:
    seen, tokenizer = _patch_of(request, name, row, col)
    return JSONResponse(await run_in_threadpool(patches.describe, tokenizer, seen, row, col))


@router.get("/picture/{name}/patch/{row}/{col}/alone.png")
async def alone(request: Request, name: str, row: Place, col: Place) -> Response:
    seen, tokenizer = _patch_of(request, name, row, col)
    async with state_of(request).decoding:
        data = await run_in_threadpool(patches.alone, tokenizer, seen, row, col)
    return _kept(data, "image/png")


def choice(request: Request, next_view: str) -> Response:
    """The page on which a picture is chosen; the view of it is at `next_view` and its id."""
    mine = state_of(request).shelf.of(request.state.visitor)[:8]
    return page(request, "home.html", samples=SAMPLES, mine=mine, next=next_view)


def seen_of(request: Request, name: str) -> Seen:
    """The picture of an id; else there is nothing here."""
    try:
        return state_of(request).shelf.get(name)
    except KeyError:
        raise HTTPException(404) from None


def _patch_of(request: Request, name: str, row: int, col: int) -> tuple[Seen, Any]:
    seen, state = seen_of(request, name), state_of(request)
    rows, cols = seen.codes.grid
    if row >= rows or col >= cols:
        raise HTTPException(404)
    return seen, state.tokenizer_of(seen.codes.fingerprint)


_DRAWN = {name for name, sample in SAMPLES.items() if sample.file.endswith("png")}


def _sample(name: str) -> tuple[bytes, str]:
    """The file of a bundled picture, and its name."""
    if name not in SAMPLES:
        raise HTTPException(404)
    return (PICTURES / SAMPLES[name].file).read_bytes(), name


def _kept(data: bytes, kind: str) -> Response:
    """A file that never changes under its address."""
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


def _download(data: bytes, kind: str, seen: Seen, suffix: str) -> Response:
    name = portable(seen.name.rpartition(".")[0] or seen.name) or "picture"
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
    headers = {"Content-Disposition": f'attachment; filename="{safe}.{suffix}"'}
    return Response(data, media_type=kind, headers=headers)
