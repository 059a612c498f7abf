"""The draw view: a sentence to a picture, code by code as it appears."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
