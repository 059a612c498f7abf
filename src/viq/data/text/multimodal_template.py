"""The chat template that lies in the folder of a multimodal model, for every tool that renders one.

It begins by making each turn a text, with `<image>` where an image goes, and by telling the system
text. Then comes the template of the language model, or ChatML. What it gives is what the processor
gives for the same messages (`templates.py`, `chat_template.py`).
"""

from __future__ import annotations

import json

from viq.data.text.chat_template import END, START

_FIRST = "{#- viq: turns of text and images -#}\n"
_THEN = "{#- viq: the template of the language model -#}\n"
_CHATML = "{#- viq: ChatML -#}\n"

_TURNS = """
{%- set viq = namespace(turns=[], text='', system=SYSTEM) -%}
{%- for message in messages -%}
  {%- set viq.text = '' -%}
  {%- if message['content'] is string -%}
    {%- set viq.text = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] or [] -%}
      {%- if part['type'] in ('image', 'image_url', 'input_image') -%}
        {%- set viq.text = viq.text + '<image>' -%}
      {%- else -%}
        {%- set viq.text = viq.text + part['text'] -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- for call in message['tool_calls'] or [] -%}
    {%- set call = call['function'] if call['function'] is defined else call -%}
    {%- set viq.text = viq.text + ('\\n' if viq.text else '') + '<tool_call>\\n' -%}
    {%- set viq.text = viq.text + (call | tojson) + '\\n</tool_call>' -%}
  {%- endfor -%}
  {%- set role = message['role'] -%}
  {%- if role in ('tool', 'function', 'observation') -%}
    {%- set role = 'user' -%}
    {%- set viq.text = '<tool_response>\\n' + viq.text + '\\n</tool_response>' -%}
  {%- endif -%}
  {%- if loop.first and role in ('system', 'developer') -%}
    {%- set viq.system = viq.text -%}
  {%- else -%}
    {%- set viq.turns = viq.turns + [{'role': role, 'content': viq.text}] -%}
  {%- endif -%}
{%- endfor -%}
"""
_SYSTEM_TURN = """
{%- if viq.system -%}
  {%- set viq.turns = [{'role': 'system', 'content': viq.system}] + viq.turns -%}
{%- endif -%}
"""
_SYSTEM_IN_QUESTION = """
{%- if viq.system and viq.turns -%}
  {%- set viq.text = viq.system + '\\n\\n' + viq.turns[0]['content'] -%}
  {%- set viq.turns = [{'role': 'user', 'content': viq.text}] + viq.turns[1:] -%}
{%- endif -%}
"""
_AS_CHATML = f"""
{{%- for turn in viq.turns -%}}
  {{{{- '{START}' + turn['role'] + '\\n' -}}}}
  {{%- if turn['role'] == 'assistant' -%}}
    {{%- generation -%}}{{{{- turn['content'] + '{END}' -}}}}{{%- endgeneration -%}}
  {{%- else -%}}
    {{{{- turn['content'] + '{END}' -}}}}
  {{%- endif -%}}
  {{{{- '\\n' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{START}assistant\\n' -}}}}{{%- endif -%}}
"""


def multimodal_template(own: str | None, system: str, *, takes_system: bool = True) -> str:
    """A template in jinja for messages of text and images.

    Args:
        own: the template of the language model, for messages of text; None: ChatML.
        system: told where messages have no system turn.
        takes_system: whether `own` has a place for it; else it goes before the first question.
    """
    turns = _TURNS.replace("SYSTEM", json.dumps(system, ensure_ascii=False))
    turns += _SYSTEM_TURN if takes_system else _SYSTEM_IN_QUESTION
    if own is None:
        return f"{_FIRST}{turns.strip()}\n{_CHATML}{_AS_CHATML.strip()}\n"
    return f"{_FIRST}{turns.strip()}\n{{%- set messages = viq.turns -%}}\n{_THEN}{own}"


def language_template(source: str | None) -> str | None:
    """The template of the language model within one of `multimodal_template`, None for ChatML.

    A template of another origin is given back as it is.
    """
    if source is None or not source.startswith(_FIRST):
        return source
    return source.partition(_THEN)[2] or None
