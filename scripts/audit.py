"""Look for known holes: `bandit` in our code, `pip-audit` in the pinned releases.

    python scripts/audit.py

bandit fails on anything above low severity; what is accepted carries `nosec` and its reason in the
code. pip-audit asks an advisory service for each pinned release and fails on every hole it knows.
Where no service can be reached it says how many releases were looked up, and does not fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SECONDS = 300


def bandit() -> int:
    """Exit status of bandit over src; what it finds is shown."""
    command = [sys.executable, "-m", "bandit", "-q", "-ll", "-r", "src"]
    status = subprocess.run(command, cwd=ROOT).returncode
    print("bandit: nothing above low severity" if status == 0 else "bandit: see above", flush=True)
    return status


def pip_audit() -> int:
    """1 if a pinned release has a known hole, else 0."""
    command = [
        sys.executable, "-m", "pip_audit", "-r", "constraints.txt", "--no-deps", "--disable-pip",
        "--format", "json", "--progress-spinner", "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("pip-audit: no advisory service can be reached; no release was looked up")
        return 0
    holes = [(item, hole) for item in found for hole in item.get("vulns", [])]
    for item, hole in holes:
        mended = ", ".join(hole["fix_versions"]) or "no release yet"
        print(f"pip-audit: {item['name']} {item['version']}: {hole['id']}, mended in {mended}")
    known = sum("skip_reason" not in item for item in found)
    print(f"pip-audit: {known} of {len(found)} pinned releases looked up, {len(holes)} known holes")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(bandit() | pip_audit())
