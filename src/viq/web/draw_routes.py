"""The draw view: a sentence to a picture, code by code as it appears."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from viq.core.codes import Codes
from viq.core.errors import ViqError
from viq.core.types import PATCH_SIZE
from viq.report.gallery_common import encoded
from viq.web.pictures import show_codes
from viq.web.rendering import page
from viq.web.state import State, state_of
from viq.web.streams import begun
from viq.web.work import Work

router = APIRouter()
_SENTENCE = 300  # characters
_EVERY = 0.4  # seconds between two pictures of what there is so far


@router.get("/draw")
async def sentence(request: Request) -> Response:
    _require(request)
    return page(request, "draw.html")


@router.post("/draw")
async def draw(request: Request) -> Response:
    """A sentence and a seed; gives the address of the work."""
    state, visitor = _require(request), request.state.visitor
    form = await request.form(max_files=0, max_fields=4, max_part_size=4096)
    words, seed = str(form.get("sentence", "")).strip(), str(form.get("seed", "0")).strip()
    if not words or len(words) > _SENTENCE:
        raise ViqError(f"write a sentence of up to {_SENTENCE} characters")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
        raise ViqError(f"{seed!r} is no seed; give a number below 1,000,000,000")

    def do(work: Work) -> dict[str, Any]:
        from viq.mllm.generation import Sampling
        from viq.mllm.text_to_image import TextToImagePipeline

        work.tell(stage="reading the sentence")
        pipeline = state.part(
            "pipeline",
            lambda: TextToImagePipeline.load(state.config.draw or "", device=state.config.device),
        )
        shown = time.monotonic()

        def written(ids_BTS: Any, grid: tuple[int, int]) -> None:
            nonlocal shown
            work.check()
            if time.monotonic() - shown < _EVERY:
                return
            shown = time.monotonic()
            ids = np.zeros((grid[0] * grid[1], ids_BTS.shape[2]), np.uint16)
            ids[: ids_BTS.shape[1]] = ids_BTS[0]
            size = (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
            codes = Codes(ids.reshape(*grid, -1), size, 0, pipeline.tokenizer.fingerprint)
            data = base64.b64encode(encoded(pipeline.tokenizer.decode(codes)[0], "PNG")).decode()
            work.tell(image=f"data:image/png;base64,{data}", stage=f"patch {ids_BTS.shape[1]}")

        sampling = Sampling(temperature=1.0, top_p=0.95, guidance=2.0)
        (codes,) = pipeline.generate_codes([words], sampling, seed=int(seed), written=written)
        seen = show_codes(pipeline.tokenizer, codes, words, visitor, work)
        seen.notes[:] = [f"Drawn from this sentence, seed {seed}."]
        state.shelf.add(seen)
        state.know(pipeline.tokenizer)
        return {"picture": seen.id}

    return begun(state.queue.add(visitor, do))


def _require(request: Request) -> State:
    state = state_of(request)
    if state.config.draw is None:
        raise HTTPException(404)
    return state
