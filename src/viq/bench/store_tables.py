"""The result of `viq.bench.store.run` as plain text, what the command line prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from viq.bench.encode_tables import table


def as_text(result: dict[str, Any]) -> str:
    """The result of `run` as text."""
    about = result["machine"]
    lines = [
        f"{result['model']} {result['fingerprint']}; medians of {result['repeats']} interleaved "
        "runs",
        f"{about['cpu']}, {about['cores']} cores, {about['torch_threads']} torch threads; "
        f"{about['os']}, Python {about['python']}, torch {about['torch']}",
    ]
    for name, show in _VIEWS.items():
        if name in result:
            lines += ["", *show(result[name])]
    return "\n".join(lines)


def _packing(section: dict[str, Any]) -> list[str]:
    lines = [f"Packing, each image alone; entropy model {section['entropy_model']}"]
    for name, one in section["sets"].items():
        lines.append(f"  {name}: {one['images']} images, {one['codes']:,} codes")
        rows: list[tuple[str, ...]] = [("", "bits/code", "1/RGB", "in, codes/s", "out, codes/s")]
        for way, got in one["ways"].items():
            speeds = (got["encode_codes_per_s"], got["decode_codes_per_s"])
            numbers = (f"{got['bits_per_code']:.2f}", f"{got['rgb_ratio']:.0f}")
            rows.append((way, *numbers, *(f"{speed:.3g}" for speed in speeds)))
        lines += table(rows)
        lines += [
            f"  viq is {packs:.1f} times as fast in and {unpacks:.1f} times out as {way}"
            for way, (packs, unpacks) in one["viq_over"].items()
        ]
    return lines


def _reading(section: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in section["versions"].items())
    lines = [f"Reading {section['samples']:,} samples in one process" + f" ({versions})" * bool(
        versions
    )]  # fmt: skip
    for kind in ("sequential", "random"):
        rows = [(kind, "samples/s", "viq is times as fast")]
        one = section[kind]
        for name, rate in one["samples_per_s"].items():
            rows.append((name, f"{rate:,.0f}", f"{one['viq_over'][name]:.1f}"))
        lines += table(rows)
    lines += [f"  without {name}: {why}" for name, why in section["skipped"].items()]
    return lines


def _batches(section: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in section["versions"].items())
    lines = [
        f"Packed batches of {section['samples']:,} samples, {section['patches']:,} visual tokens, "
        "with text ids, shuffled" + f" ({versions})" * bool(versions)
    ]
    for tokens, by_workers in section["by_tokens"].items():
        for workers, ways in by_workers.items():
            head = (f"{int(tokens):,} tokens, {workers} workers", "batches/s", "min", "max")
            rows: list[tuple[str, ...]] = [(*head, "first, s", "viq is times as fast")]
            for name, one in ways.items():
                rates = (f"{one[key]:,.0f}" for key in ("median", "min", "max"))
                rows.append((name, *rates, f"{one['first_s']:.2f}", f"{one['viq_over']:.2f}"))
            lines += table(rows)
    lines += [f"  without {name}: {why}" for name, why in section["skipped"].items()]
    return lines


def _remote(section: dict[str, Any]) -> list[str]:
    if section["skipped"]:
        return [f"Object store: left out, {section['skipped']['remote']}"]
    lines = [
        f"Packed batches of {section['tokens']:,} tokens from an object store that takes "
        f"{1000 * section['latency_s']:.0f} ms a request: {section['samples']:,} samples, "
        f"{section['shards']} shards, {section['mib']:.0f} MiB"
    ]
    for order, steps in section["orders"].items():
        rows: list[tuple[str, ...]] = [
            (
                order, "batches/s", "min", "max", "without latency", "ratio", "first, s", "min",
                "max", "requests", "MiB",
            )
        ]  # fmt: skip
        for step, one in steps.items():
            far = one["with"]
            rate, first = far["batches_per_s"], far["first_s"]
            rows.append(
                (
                    f"{1000 * float(step):.0f} ms a step",
                    *(f"{rate[key]:.1f}" for key in ("median", "min", "max")),
                    f"{one['without']['batches_per_s']['median']:.1f}",
                    f"{one['ratio']:.3f}",
                    *(f"{first[key]:.2f}" for key in ("median", "min", "max")),
                    f"{far['first_requests']['median']:.0f}",
                    f"{far['first_mib']['median']:.1f}",
                )
            )
        lines += table(rows)
    return lines


def _encoding(section: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [("workers", "model alone, images/s", "to a store", "share")]
    for workers, one in section["workers"].items():
        rates = (f"{rate:.2f}" for rate in one["images_per_s"].values())
        rows.append((str(workers), *rates, f"{one['share_of_model_alone']:.1%}"))
    return [f"Encoding {section['images']} JPEG files into a store", *table(rows)]


def _memory(section: dict[str, Any]) -> list[str]:
    rows = [("images", "peak MiB")]
    for count, peak in section["peak_mib"].items():
        rows.append((count, f"{peak:.0f}" if peak else "unknown"))
    return ["Memory of encoding small pictures into a store", *table(rows)]


_VIEWS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "packing": _packing,
    "reading": _reading,
    "batches": _batches,
    "remote": _remote,
    "encoding": _encoding,
    "memory": _memory,
}
