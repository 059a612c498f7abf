"""Questions and captions about charts."""

import random
from collections.abc import Iterator

from viq.data.synthetic.canvas import SyntheticImage, distance
from viq.data.synthetic.questions.base import LONGEST, Draft, Facts, with_article, yes_no

PROMPTS: dict[str, tuple[str, ...]] = {
    "chart_mark": ("what kind of chart is this?", "name the kind of chart."),
    "chart_count": ("how many {marks} are there?", "count the {marks}."),
    "chart_title": ("what is the title?", "read the title of the chart."),
    "chart_max": ("which {mark} is the {most}?", "what is the {most} {mark}?"),
    "chart_min": ("which {mark} is the {least}?", "what is the {least} {mark}?"),
    "chart_compare": ("is {a} {more} than {b}?", "does {a} have {amount} value than {b}?"),
    "chart_value": ("what is the value of {name}?", "read the value of {name}."),
}

_MARKS = {
    "bar": ("bar chart", "bar"), "barh": ("horizontal bar chart", "bar"),
    "line": ("line chart", "line"), "scatter": ("scatter plot", "dot"),
    "pie": ("pie chart", "slice"), "donut": ("donut chart", "slice"),
}  # fmt: skip
_EXTREMES = {"bar": ("highest", "lowest"), "barh": ("longest", "shortest")}


def ask(drawing: SyntheticImage, rng: random.Random) -> Iterator[Draft]:
    """All that can be asked, in a fixed order."""
    facts = drawing.facts
    chart, mark = _MARKS[_mark(facts)]
    yield "chart_mark", chart, {}
    if facts["mark"] != "scatter" and _told_apart(facts):
        yield "chart_count", str(len(facts["values"])), {"marks": f"{mark}s"}
    if facts["title"] in facts["texts"] and len(facts["title"]) <= LONGEST:
        yield "chart_title", facts["title"].lower(), {}
    values = _named_values(facts)
    if not values:
        return
    most, least = _EXTREMES.get(facts["mark"], ("largest", "smallest"))
    if highest := _peak(facts):
        yield "chart_max", highest.lower(), {"mark": mark, "most": most}
    if lowest := _peak(facts, sign=-1):
        yield "chart_min", lowest.lower(), {"mark": mark, "least": least}
    gap = _clear_gap(facts)
    pairs = [(a, b) for a in values for b in values if abs(values[a] - values[b]) >= gap]
    if pairs:
        a, b = rng.choice(pairs)
        more, amount = rng.choice((("larger", "a higher"), ("smaller", "a lower")))
        yes = (values[a] > values[b]) == (more == "larger")
        yield "chart_compare", yes_no(yes), {"a": a, "b": b, "more": more, "amount": amount}
    # A value is written out, or a unit of the axis is wide enough to read off.
    if facts["mark"] == "pie" or facts["shown"] or facts["px_per_unit"] >= 8:
        name = rng.choice(sorted(values))
        sign = "%" if facts["mark"] == "pie" else ""
        yield "chart_value", f"{values[name]}{sign}", {"name": name}


def _mark(facts: Facts) -> str:
    return "donut" if facts.get("donut") else facts["mark"]


def _told_apart(facts: Facts) -> bool:
    """Bars stand apart; lines and slices need colours that differ."""
    colors = [tuple(c) for c in facts["colors"]]
    pairs = ((a, b) for i, a in enumerate(colors) for b in colors[:i])
    return facts["mark"] in ("bar", "barh") or all(distance(a, b) >= 60 for a, b in pairs)


def _named_values(facts: Facts) -> dict[str, int]:
    """Value of each category, if all their names were drawn and can be matched with the marks."""
    if facts["mark"] not in ("bar", "barh", "pie") or not _told_apart(facts):
        return {}
    values = dict(zip(facts["categories"], facts["values"], strict=True))
    drawn = [f"{n} {v}%" if facts["mark"] == "pie" else n for n, v in values.items()]
    return values if set(drawn) <= set(facts["texts"]) else {}


def _clear_gap(facts: Facts) -> float:
    """The least difference of values that shows: 3 percent of a pie, 3 px of a bar."""
    return 3.0 if facts["mark"] == "pie" else max(1.0, 3 / facts["px_per_unit"])


def _peak(facts: Facts, sign: int = 1) -> str | None:
    """The category with the highest value (lowest with `sign` -1), if clear."""
    values = _named_values(facts)
    ranked = sorted(values, key=lambda name: sign * values[name])[-2:]
    clear = len(ranked) == 2 and abs(values[ranked[1]] - values[ranked[0]]) >= _clear_gap(facts)
    return ranked[1] if clear else None


def caption(facts: Facts, rng: random.Random) -> str:
    """One true sentence."""
    chart, mark = _MARKS[_mark(facts)]
    titled = facts["title"] in facts["texts"]
    title = f" titled '{facts['title']}'" if titled else ""
    number = len(facts["values"])
    marks = f" with {number} {mark}{'s' if number > 1 else ''}" if _told_apart(facts) else ""
    highest = _peak(facts)
    top = f", {rng.choice(('highest', 'largest'))} at {highest}" if highest else ""
    return with_article(chart) + title + (marks if facts["mark"] != "scatter" else "") + top
