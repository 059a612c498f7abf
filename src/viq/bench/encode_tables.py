"""The result of `viq.bench.encode.run` as plain text, what the command line prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def as_text(result: dict[str, Any]) -> str:
    """The result of `run` as text; a ratio of 2 means twice the time of the first line."""
    about = result["machine"]
    lines = [
        f"{result['model']}: {result['parameters'] / 1e6:.2f}M parameters, {result['dtype']}, "
        f"{result['device']}; medians of {result['repeats']} interleaved runs",
        f"{about['gpu'] if result['device'] == 'cuda' else about['cpu']}, {about['cores']} cores, "
        f"{about['torch_threads']} torch threads, {about['simd']}; {about['os']}, "
        f"Python {about['python']}, torch {about['torch']}",
    ]
    for name, title, show in _VIEWS:
        if name in result:
            section = result[name]
            lines += ["", title]
            lines += [f"  skipped: {section['skipped']}"] if "skipped" in section else show(section)
    return "\n".join(lines)


def _show_rates(section: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "ratio", "images/s", "MP/s", "patches/s", "codes/s")]
    for name, rate in section["rates"].items():
        numbers = [f"{value:.4g}" for value in rate.values()]
        rows.append((name, f"{section['times'][name]['ratio_to_first']:.2f}", *numbers))
    return table(rows)


def _show_size(section: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "ratio of s/MP", "s/MP", "s")]
    for row in section["encode"]:
        height, width = row["size"]
        name = f"{width}x{height}, " + (f"tiles of {row['tile']}" if row["tile"] else "whole")
        numbers = (row["ratio_to_first"], row["s_per_megapixel"], row["times"]["median_s"])
        rows.append((name, *(f"{number:.3g}" for number in numbers)))
    lines = table(rows)
    if "photo" in section:
        height, width = section["photo"]["size"]
        lines += [f"  {width}x{height}:", *_show_times(section["photo"]["times"])]
    for name, peak in section["memory_mib"].items():
        lines.append(f"  peak memory, {name}: " + (f"{peak:.0f} MiB" if peak else "unknown"))
    return lines


def _show_attention(section: dict[str, Any]) -> list[str]:
    lines = [
        f"  {len(section['lengths'])} images, {section['tokens']} tokens "
        f"({section['tokens_padded']} padded), {section['heads']} heads of {section['head_dim']}"
    ]
    for name in ("forward", "forward_backward"):
        lines += [f"  {name}:", *_show_times(section[name])]
    return lines


def _show_folding(section: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("", "MFLOP/patch folded", "unfolded", "ratio", "time ratio (patches)")
    ]
    for name, one in section.items():
        flops = [f"{value / 1e6:.3f}" for value in one["flops_per_patch"].values()]
        spent = [
            f"{times['restore']['unfolded']['ratio_to_first']:.2f} ({patches})"
            for patches, times in one["patches"].items()
        ]
        rows.append((name, *flops, f"{one['flops_ratio']:.2f}", ", ".join(spent)))
    return table(rows)


def _show_trunks(section: dict[str, Any]) -> list[str]:
    lines = []
    for name, one in section.items():
        work = one["work"]["naflex"]
        lines.append(
            f"  {name}: width {one['width']}, depth {one['depth']}, {one['images']} images, "
            f"{work['patches']} patches ({work['patches_computed']} padded)"
        )
        lines += _show_times(one["times"])
    return lines


def _show_cold(section: dict[str, Any]) -> list[str]:
    failed = [f"  {name}: failed, {reason}" for name, reason in section["failed"].items()]
    return _show_times(section["times"]) + failed


def _show_times(times: dict[str, dict[str, float]]) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "ratio", "median s", "min", "max")]
    for name, spent in times.items():
        seconds = [f"{spent[key]:.4g}" for key in ("median_s", "min_s", "max_s")]
        rows.append((name, f"{spent['ratio_to_first']:.2f}", *seconds))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of equally wide columns; the first row holds the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "    " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


_VIEWS: tuple[tuple[str, str, Callable[[dict[str, Any]], list[str]]], ...] = (
    ("throughput", "Encoding images of mixed sizes", _show_rates),
    ("decode", "Decoding them", _show_rates),
    ("size", "Encoding against image size", _show_size),
    ("attention", "Attention on one packed sequence", _show_attention),
    ("folding", "Codes to features, two linear maps folded into one", _show_folding),
    ("trunk_vs_naflex", "Trunk against the NaFlex tower of transformers", _show_trunks),
    ("cold", "New processes", _show_cold),
)
