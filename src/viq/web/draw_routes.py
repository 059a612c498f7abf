"""The draw view: a sentence to a picture, code by code as it appears."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from PIL import Image
from starlette.responses import Response

from viq.core.codes import Codes
from viq.core.errors import ViqError
from viq.core.types import PATCH_SIZE
from viq.models.tokenizer.tokenizer import VisualTokenizer
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
            image = _so_far(pipeline.tokenizer, ids_BTS[0].cpu().numpy(), grid)
            data = base64.b64encode(encoded(image, "PNG")).decode()
            stage = f"patch {ids_BTS.shape[1]} of {grid[0] * grid[1]}"
            work.tell(image=f"data:image/png;base64,{data}", stage=stage)

        sampling = Sampling(temperature=1.0, top_p=0.95, guidance=2.0)
        (codes,) = pipeline.generate_codes([words], sampling, seed=int(seed), written=written)
        seen = show_codes(pipeline.tokenizer, codes, words, visitor, work)
        seen.notes[:] = [f"Drawn from this sentence, seed {seed}."]
        state.shelf.add(seen)
        state.know(pipeline.tokenizer)
        return {"picture": seen.id}

    return begun(state.queue.add(visitor, do))


def _so_far(tokenizer: VisualTokenizer, ids_TS: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """What the first T patches of a grid decode to; where the others will be, it is transparent."""
    written = len(ids_TS)
    # Pixels at the edge of a patch also depend on codes beside it: the last ones stand in for those
    # that are to come, as they are likely to be like them.
    ids = np.repeat(ids_TS[-1:], grid[0] * grid[1], 0).astype(np.uint16)
    ids[:written] = ids_TS
    size = (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
    codes = Codes(ids.reshape(*grid, -1), size, 0, tokenizer.fingerprint)
    image = tokenizer.decode(codes)[0]
    seen = np.arange(grid[0] * grid[1]).reshape(grid) < written
    opaque = (seen.repeat(PATCH_SIZE, 0).repeat(PATCH_SIZE, 1) * 255).astype(np.uint8)
    image.putalpha(Image.fromarray(opaque))
    return image


def _require(request: Request) -> State:
    state = state_of(request)
    if state.config.draw is None:
        raise HTTPException(404)
    return state
