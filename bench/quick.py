"""A few speeds as ratios, beside the last ones; 1 if one fell by more than 15 %.

    PYTHONPATH=src python bench/quick.py bench/last.json
    PYTHONPATH=src python bench/quick.py bench/last.json --save
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from viq.bench.quick import FALL, as_text, compared, quick


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("last", type=Path, help="file of the last ones")
    parser.add_argument("--save", action="store_true", help="these are the last ones from now on")
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    last = json.loads(asked.last.read_text()) if asked.last.exists() else {}
    new = quick(repeats=asked.repeats, progress=lambda name: print(name, "..", file=sys.stderr))
    print(as_text(new, last))
    if asked.save:
        asked.last.write_text(json.dumps(new, indent=1) + "\n")
        return 0
    fallen = compared(new, last)
    for name, fall in fallen.items():
        print(f"{name} fell by {fall:.0%}, more than {FALL:.0%}: find out why, or --save")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
