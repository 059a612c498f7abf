"""What was filled into a question."""

import re

from viq.data.synthetic.questions import _PROMPTS, Question


def words_of(question: Question) -> dict[str, str]:
    """What was filled into the prompt."""
    for template in _PROMPTS[question.kind]:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(template))
        pattern = pattern.replace("<side>.+?", "<side>left of|right of|above|below")
        if match := re.fullmatch(pattern, question.prompt):
            return match.groupdict()
    raise AssertionError(question)
