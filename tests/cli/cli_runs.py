"""Running the command line within a test."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from viq.cli import app

FAMILY = [(20, 50), (33, 16), (1, 1)]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    if code == 0:
        assert "viq:" not in result.stderr
    return result


def run_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def one_line(result: Result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("viq:")]
    assert len(lines) == 1, result.stderr
    return lines[0]
