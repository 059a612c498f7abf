"""Build wheel and sdist, and try the wheel where nothing but torch is: `make package`.

    python scripts/try_package.py FOLDER

torch is the one of the environment that runs this script, lent by links, as it takes gigabytes or
minutes to install; all else comes by pip, as the wheel asks for it. Tried are the commands that
work out of the box, those that must name the one extra they need, and chat with that extra.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED_IN_SDIST = (
    "src/viq/py.typed",
    "tests/conftest.py",
    "docs/cli.md",
    "constraints.txt",
    "LICENSE",
)


PICTURE = str(ROOT / "src/viq/report/pictures/shapes.png")


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = time.monotonic()
    wheel = build(folder / "dist")
    python = environment(folder / "venv")
    pip(python, str(wheel))
    out_of_the_box(folder, python)
    names_the_extra(folder, python)
    pip(python, f"{wheel}[chat]")
    answer = viq(folder, python, "chat", PICTURE, "What color is the triangle?")
    if not answer.strip():
        raise SystemExit("viq chat: no answer")
    print(f"viq chat: {answer.strip()}")
    print(
        f"the package works; torch was lent, all else installed; {time.monotonic() - begun:.0f} s"
    )


def build(folder: Path) -> Path:
    """The wheel, built of the sdist, so that both are whole."""
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    missing = [name for name in NEEDED_IN_SDIST if name not in names]
    if missing:
        raise SystemExit(f"{sdist.name}: lacks {', '.join(missing)}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    listed = run("git", "ls-files", "src/viq", cwd=ROOT).splitlines()
    missing = [name for name in listed if name.removeprefix("src/") not in names]
    if missing:
        raise SystemExit(f"{wheel.name}: lacks {', '.join(missing)}")
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; {sdist.name}: {sdist.stat().st_size:,}")
    return wheel


def environment(folder: Path) -> Path:
    """A new environment with links to the torch of this one; gives its Python."""
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    files = distribution("torch").files or []
    for name in sorted({Path(file).parts[0] for file in files} - {"..", "__pycache__"}):
        place = Path(str(distribution("torch").locate_file(name)))
        (site / name).symlink_to(place, target_is_directory=place.is_dir())
    return folder / "bin" / "python"


def out_of_the_box(folder: Path, python: Path) -> None:
    for words in (("--help",), ("--version",), ("models",), ("doctor",)):
        viq(folder, python, *words)
    viq(folder, python, "demo", PICTURE, "-o", "demo")  # of all six it takes half a minute
    viq(folder, python, "encode", PICTURE, "-o", "codes.parquet")
    viq(folder, python, "decode", "codes.parquet", "-o", "back")
    viq(folder, python, "store", "lint", "codes.parquet")
    typed = (
        "from importlib.resources import files; assert files('viq').joinpath('py.typed').is_file()"
    )
    run(str(python), "-c", typed, cwd=folder)


def names_the_extra(folder: Path, python: Path) -> None:
    """Commands that need more say so, in one line."""
    for extra, words in (
        ("chat", ("chat", PICTURE, "What is this?")),
        ("chat", ("caption", "codes.parquet", "-o", "answers.jsonl")),
        ("chat", ("generate", "a red circle", "-o", "circle.png")),
        ("train", ("train", "tokenizer", "debug")),
        ("train", ("train", "mllm", "debug")),
        ("codec", ("encode", PICTURE, "-o", "small.parquet", "--compress")),
    ):
        told = viq(folder, python, *words, code=2)
        if f"pip install 'viq[{extra}]'" not in told or told.count("viq: ") != 1:
            raise SystemExit(f"viq {' '.join(words)}: does not name the extra {extra}: {told}")
        print(told.strip())


def viq(folder: Path, python: Path, *words: str, code: int = 0) -> str:
    return run(str(python.parent / "viq"), *words, cwd=folder, code=code)


def pip(python: Path, *wanted: str) -> None:
    quiet = ("-q", "--disable-pip-version-check", "--no-compile", "--prefer-binary")
    run(str(python), "-m", "pip", "install", *quiet, *wanted, "-c", str(ROOT / "constraints.txt"))


def run(*command: str, cwd: Path | None = None, code: int = 0) -> str:
    """What a command says; any other exit code ends the try."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != code:
        raise SystemExit(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
