"""What questions of all kinds have in common: drafts, and how answers are worded."""

from typing import Any

Facts = dict[str, Any]
Draft = tuple[str, str, dict[str, str]]  # kind, answer, words for the prompt

LONGEST = 40  # letters in an answer


def with_article(thing: str) -> str:
    """ "a bar chart", "an orange square"."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def yes_no(yes: bool) -> str:
    """The answer to a question of yes or no."""
    return "yes" if yes else "no"
