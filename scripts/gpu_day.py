"""Everything that wants a GPU, in one command that ends by itself (docs/speed.md).

    python scripts/gpu_day.py --pack photos.parquet --photos PHOTOS  # before, on any machine
    python scripts/gpu_day.py --minutes 8 --out DIR --data photos.parquet  # where the GPU is
    python scripts/gpu_day.py --page DIR  # afterwards: tables and plots

    python scripts/gpu_day.py --keep --chat RUN --codes STORE --where licence_tier=permissive
    python scripts/gpu_day.py --only chat --chat RUN --out DIR  # and draw, with --draw RUN
    python scripts/gpu_day.py --assemble DIR --chat RUN

Parts run in order of worth: parity, mllm, encode, train; chat and draw train the language model of
a run of `viq train mllm` or `viq train generation`, where one is given. Each result is a line of
DIR/results.jsonl as soon as it is there; the same command goes on where it was stopped. `--device
cpu --tiny` runs every part in small shapes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # of this checkout, which need not be installed

PARTS = ("parity", "mllm", "encode", "chat", "draw", "train")
_NEED_RUN = ("chat", "draw")
_GOLDEN = ROOT / "tests" / "golden"
_RESERVE = {"mllm": 0.45, "encode": 0.2}  # of the whole time, left to the parts after this one


def main() -> int:
    options = _options()
    from viq.core.types import ViqError

    try:
        if options.pack:
            return _pack(options)
        if options.page:
            return _page(options)
        if options.keep or options.assemble:
            return _runs(options)
        return _child(options) if options.child else _run(options)
    except (ViqError, OSError) as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    """Start the process that measures, and again when a cell has brought it down."""
    from viq.bench.gpu.cells import supervised
    from viq.core.measure import environment

    options.out.mkdir(parents=True, exist_ok=True)
    given = [a for a in sys.argv[1:] if a != "--child"]

    def command(seconds: float) -> list[str]:
        return [sys.executable, __file__, *given, "--child", "--seconds", str(seconds)]

    values = environment() | {"PYTHONUNBUFFERED": "1"}
    supervised(command, options.out, seconds=60 * options.minutes, environment=values)
    print(f"python scripts/gpu_day.py --page {options.out}")
    return 0


def _child(options: argparse.Namespace) -> int:
    import torch

    from viq.bench.gpu.cells import RESTART, Cells, DeviceLost
    from viq.core.measure import machine
    from viq.core.types import ViqError

    wanted = options.device or "cuda"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ViqError("no CUDA device: give --device cpu --tiny to try every part")
    device = torch.device(wanted)
    cells = Cells(options.out, seconds=options.seconds, device=device, echo=print)
    about = machine()
    if wanted == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        about |= {"gpu_memory_gib": round(memory / 2**30, 1), "cuda": torch.version.cuda}
    cells.note("machine", "machine", {**about, "device": wanted, "tiny": options.tiny})
    parts = options.only.split(",") if options.only else PARTS
    parts = [part for part in parts if part not in _NEED_RUN or getattr(options, part)]
    try:
        for part in PARTS:
            if part in parts:
                after = sum(name in parts for name in PARTS[PARTS.index(part) + 1 :])
                share = _RESERVE.get(part, 0.0) if after else 0.0
                cells.reserve(share * 60 * options.minutes)
                _measure(part, cells, options)
    except DeviceLost as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return RESTART
    return 0


def _measure(part: str, cells, options: argparse.Namespace) -> None:
    from viq.bench.gpu import tiny

    if part == "parity":
        from viq.bench.gpu import parity

        golden = _GOLDEN if _GOLDEN.is_dir() else None
        parity.measure(cells, golden, **(tiny.PARITY if options.tiny else {}))
    elif part == "mllm":
        from viq.bench.gpu import mllm_cells
        from viq.bench.mllm import MllmWorkload

        work = tiny.MLLM if options.tiny else MllmWorkload()
        mllm_cells.measure(cells, work, **(tiny.MLLM_OPTIONS if options.tiny else {}))
    elif part == "encode":
        from viq.bench.gpu import encode_cells

        work = tiny.ENCODE if options.tiny else encode_cells.EncodeScale()
        encode_cells.measure(cells, work, **(tiny.ENCODE_OPTIONS if options.tiny else {}))
    elif part == "chat":
        from viq.bench.gpu import chat_cells

        chat_cells.measure(cells, options.chat)
    elif part == "draw":
        from viq.bench.gpu import draw_cells

        draw_cells.measure(cells, options.draw)
    else:
        from viq.bench.gpu import train_cells
        from viq.recipes.tokenizer import train_small

        work = tiny.SMALL if options.tiny else train_cells.SmallWork()
        train_cells.measure(cells, train_small(), options.data, work)


def _pack(options: argparse.Namespace) -> int:
    from viq.bench.gpu.train_cells import pack_photos

    count = pack_photos(options.photos or [], options.pack, mib=options.mib)
    size = options.pack.stat().st_size / 2**20
    print(f"{options.pack}: {count} photos, {size:.1f} MiB")
    return 0


def _runs(options: argparse.Namespace) -> int:
    """Make samples of runs ready, or models of what was trained on them."""
    from viq.bench.gpu import chat_cells, draw_cells
    from viq.cli.common import conditions

    if options.chat and options.keep:
        out = options.chat / chat_cells.KEPT
        where = conditions(options.where)
        count = chat_cells.keep(options.chat, options.codes or [], where, out)
        print(f"{out}: {count} conversations")
    if options.draw and options.keep:
        out = options.draw / draw_cells.KEPT
        print(f"{out}: {draw_cells.keep(options.draw, out)} pictures")
    if options.chat and options.assemble:
        print(chat_cells.assemble(options.assemble, options.chat))
    if options.draw and options.assemble:
        print(draw_cells.assemble(options.assemble, options.draw))
    return 0


def _page(options: argparse.Namespace) -> int:
    from viq.bench.gpu.tables import write_page
    from viq.recipes.tokenizer import train_small

    for file in write_page(options.page, train_small()):
        print(file)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="when it ends")
    parser.add_argument("--out", type=Path, default=Path("gpu-day"), help="folder of results")
    parser.add_argument("--only", help=f"of {','.join(PARTS)}, by commas")
    parser.add_argument("--data", type=Path, help="photos for the part train: what --pack wrote")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try every part")
    parser.add_argument("--page", type=Path, metavar="DIR", help="tables and plots of results")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write a Parquet file of photos")
    parser.add_argument(
        "--photos", action="append", help="data of photos for --pack; again for more"
    )
    parser.add_argument("--mib", type=float, default=5.0, help="size of that file, at most")
    parser.add_argument("--chat", type=Path, metavar="RUN", help="of viq train mllm")
    parser.add_argument("--draw", type=Path, metavar="RUN", help="of viq train generation")
    parser.add_argument("--keep", action="store_true", help="make samples of RUN ready")
    parser.add_argument("--codes", action="append", type=Path, metavar="STORE",
                        help="stores of --chat RUN; again for more")  # fmt: skip
    parser.add_argument("--where", action="append", metavar="COLUMN=VALUE", help="of --codes")
    parser.add_argument("--assemble", type=Path, metavar="DIR", help="models of what was trained")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(PARTS) if options.only else set()
    wanted = options.only.split(",") if options.only else []
    for part in (name for name in _NEED_RUN if name in wanted and not getattr(options, name)):
        parser.error(f"--only {part}: give --{part} RUN")
    if (options.keep or options.assemble) and not (options.chat or options.draw):
        parser.error("--keep and --assemble: give --chat RUN or --draw RUN")
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
