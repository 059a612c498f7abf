"""The tokenizers that come with the package, by the codes that they make."""

from __future__ import annotations

from viq.core.files import BUNDLED
from viq.weights.checkpoint import CONFIG_FILE, read_config


def bundled_maker(fingerprint: str) -> str | None:
    """Name of the bundled tokenizer whose codes have this fingerprint; None if none does."""
    for folder in sorted(BUNDLED.iterdir()):
        if fingerprint and (folder / CONFIG_FILE).is_file():
            values = read_config(folder)
            if "encoder" in values and values.get("fingerprint") == fingerprint:
                return folder.name
    return None
