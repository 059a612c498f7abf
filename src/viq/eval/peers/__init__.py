"""Image tokenizers of others, and ours, behind one protocol: `load_peer`."""

from __future__ import annotations

import os
from importlib import import_module

from viq.core.errors import ViqError
from viq.eval.peers.protocol import Peer

KINDS = ("viq", "qlip", "unitok", "simvq", "siglip2")


def load_peer(kind: str, path: str | os.PathLike[str]) -> Peer:
    """A tokenizer, ready to use, on the CPU.

    Args:
        kind: one of `KINDS`; the module of that name is imported, and no other.
        path: folder or file with the official weights; docs/peers.md says how to get each. A
            bundled name or a Hugging Face hub id for "viq".

    Raises:
        ViqError: no such kind.
        CheckpointError: the files are missing, incomplete, damaged, or of another model.
    """
    if kind not in KINDS:
        raise ViqError(f"no peer is called {kind!r:.80}: choose from {', '.join(KINDS)}")
    return import_module(f"{__name__}.{kind}").load(path)
