"""What transformers calls keys and values of the tokens before.

`cache` since 5.24, which warns where it is told `past_key_values` and will no longer know them in
5.40; before, `past_key_values`.
"""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

_NAMES = {field.name for field in fields(BaseModelOutputWithPast)}
CACHE = "cache" if "cache" in _NAMES else "past_key_values"
