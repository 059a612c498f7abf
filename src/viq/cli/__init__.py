"""The `viq` command."""

from viq.cli.main import app, main

__all__ = ["app", "main"]
