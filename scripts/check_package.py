"""Builds the sdist and the wheel, checks both, and uses the wheel in an empty environment, outside the checkout.

``python scripts/check_package.py`` in an environment that has `build` and `twine`; it writes to temporary folders only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What the library does, on one line.
USE = "import torch, topkloss; assert topkloss.average_top_k(torch.tensor([1.0, 2.0, 9.0]), k=2).item() == 5.5"

# What an installation without extras must not bring.
HEAVY = {"lightning", "matplotlib", "mlxtend", "pandas", "scikit-learn", "timm", "torchvision"}


class Wrong(Exception):
    """The package is not what it must be."""


def require(holds: bool, sentence: str) -> None:
    """Raises where something does not hold."""
    if not holds:
        raise Wrong(sentence)


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What a command prints; it must end with the exit code."""
    # The checkout must not be found by accident.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    require(done.returncode == code, f"{' '.join(words)}: exit code {done.returncode}, not {code}\n{done.stdout}")
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    """The one file of that kind."""
    found = list(folder.glob(pattern))
    require(len(found) == 1, f"one {pattern} was to be built; found {len(found)}")
    return found[0]


def build(source: Path, target: Path, *options: str) -> None:
    """Runs `python -m build`; without options, the wheel is built from the sdist."""
    run(sys.executable, "-m", "build", "--outdir", target, *options, source, cwd=target.parent)


def wheel_files(wheel: Path) -> list[str]:
    """Names in a wheel, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def check_contents(wheel: Path, sdist: Path) -> None:
    """The wheel has the library and nothing else; the sdist has what it takes to build and test it."""
    names = wheel_files(wheel)
    inside = {name for name in names if name.startswith("topkloss/")}
    outside = {name for name in names if name not in inside and ".dist-info/" not in name}
    require(not outside, f"the wheel must hold topkloss/ only; it also holds {sorted(outside)}")
    require("topkloss/py.typed" in inside, "the wheel lacks topkloss/py.typed")
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    require(sources <= inside, f"the wheel lacks {sorted(sources - inside)}")
    require(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks the licence")

    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    needed = {f"src/{name}" for name in sources}
    needed |= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")}
    require(needed <= packed, f"the sdist lacks {sorted(needed - packed)}")
    left = {name for name in packed if "__pycache__" in name or name.startswith((".venv", ".git/"))}
    require(not left, f"the sdist holds {sorted(left)}")


def check_installed(wheel: Path, folder: Path) -> None:
    """In an empty environment: the library works, the command answers, and says which extra is missing."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "pip", "install", "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
    run(programs / "pip", "check", cwd=folder)
    installed = run(programs / "pip", "list", "--format=freeze", cwd=folder).lower().split()
    heavy = HEAVY & {line.partition("==")[0] for line in installed}
    require(not heavy, f"an installation without extras brings {sorted(heavy)}")

    run(programs / "python", "-c", USE, cwd=folder)
    version = wheel.name.split("-")[1]
    said = run(programs / "topkloss", "--version", cwd=folder)
    require(version in said, f"topkloss --version must say {version}; it says {said!r}")
    said = run(programs / "topkloss", "train", cwd=folder, code=2)
    require("topkloss[train]" in said or '.[train]"' in said, f"topkloss train must name its extra; it says {said!r}")
    require("Traceback" not in said, f"topkloss train must answer in a sentence; it says {said!r}")
    left = {path.name for path in folder.iterdir()} - {"venv"}
    require(not left, f"topkloss train left {sorted(left)} behind")


def main() -> None:
    """Runs all checks, and says how long each took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built, direct, elsewhere = (folder / part for part in ("built", "direct", "elsewhere"))
        for part in (built, direct, elsewhere):
            part.mkdir()

        def step(sentence: str, started: float) -> None:
            print(f"{time.perf_counter() - started:6.1f} s  {sentence}", flush=True)

        start = time.perf_counter()
        build(ROOT, built)
        build(ROOT, direct, "--wheel")
        wheel, sdist = only(built, "*.whl"), only(built, "*.tar.gz")
        step("sdist and wheel are built", start)

        start = time.perf_counter()
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=folder)
        check_contents(wheel, sdist)
        same: Sequence[str] = wheel_files(only(direct, "*.whl"))
        require(wheel_files(wheel) == same, "the sdist builds another wheel than the checkout")
        step("they hold what they must, and nothing else", start)

        start = time.perf_counter()
        check_installed(wheel, elsewhere)
        step("the wheel works in an empty environment", start)


if __name__ == "__main__":
    try:
        main()
    except Wrong as error:
        sys.exit(str(error))
