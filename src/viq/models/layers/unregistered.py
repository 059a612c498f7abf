"""Modules that another module uses without owning them."""

from __future__ import annotations

from typing import Generic, TypeVar

Module = TypeVar("Module")


class Unregistered(Generic[Module]):
    """A place for a module that is no part of its user: not of its state dict, its parameters or
    its moves between devices. Empty (`module` is None) until it is set."""

    def __init__(self, module: Module | None = None) -> None:
        self.module = module
