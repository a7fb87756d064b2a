"""Builds the sdist and the wheel, checks both, and uses them in an empty environment, outside the checkout.

The wheel holds the native kernels; an installation without a compiler goes without them; one whose compiler finds a
mistake fails. ``python scripts/check_package.py DIST`` keeps the sdist and the manylinux wheel in the folder DIST;
without it all is written to temporary folders. It needs GCC or Clang and what the extra `dev` brings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
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

# Which kernels serve.
NATIVE = "from topkloss.kernels import native; print(native.LIBRARY.path)"
PORTABLE = "from topkloss.kernels import native; assert native.LIBRARY is None"

# All that a wheel installs.
PACKAGE = "topkloss/"

# The native kernels in a wheel, and where their sources lie in an sdist.
LIBRARY = "topkloss/kernels/_native.so"
CSRC = "src/topkloss/kernels/csrc"

# Seconds that an installation from source may take, when what builds it is there.
LONGEST_INSTALLATION = 60

# What an installation without extras must not bring.
HEAVY = {"lightning", "matplotlib", "mlxtend", "pandas", "scikit-learn", "timm", "torchvision"}


class Wrong(Exception):
    """The package is not what it must be."""


def require(holds: bool, sentence: str) -> None:
    """Raises where something does not hold."""
    if not holds:
        raise Wrong(sentence)


def run(*command: str | Path, cwd: Path, code: int = 0, **variables: str) -> str:
    """What a command prints; it must end with the exit code."""
    # The checkout must not be found by accident.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), **variables}
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
    inside = {name for name in names if name.startswith(PACKAGE)}
    outside = {name for name in names if name not in inside and ".dist-info/" not in name}
    require(not outside, f"the wheel must hold {PACKAGE} only; it also holds {sorted(outside)}")
    require("topkloss/py.typed" in inside, "the wheel lacks topkloss/py.typed")
    libraries = {name for name in inside if name.endswith(".so")}
    require(libraries == {LIBRARY}, f"the wheel must hold {LIBRARY}; it holds {sorted(libraries)}")
    left = {name for name in inside if "csrc" in name or "__pycache__" in name}
    require(not left, f"the wheel holds {sorted(left)}")
    tag = f"-py3-none-{sysconfig.get_platform().replace('-', '_')}.whl"
    require(wheel.name.endswith(tag), f"the wheel's name must end in {tag}; it is {wheel.name}")
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    require(sources <= inside, f"the wheel lacks {sorted(sources - inside)}")
    require(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks the licence")

    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    needed = {f"src/{name}" for name in sources}
    needed |= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"}
    needed |= {"CMakeLists.txt", *(f"{CSRC}/{path.name}" for path in (ROOT / CSRC).iterdir())}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.*")}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")}
    require(needed <= packed, f"the sdist lacks {sorted(needed - packed)}")
    left = {name for name in packed if "__pycache__" in name or name.endswith(".so")}
    left |= {name for name in packed if name.startswith((".", "build/", "demo/", "dist/")) and name != ""}
    require(not left, f"the sdist holds {sorted(left)}")


def for_many_linuxes(wheel: Path, target: Path) -> Path:
    """The same wheel, named after the oldest C library that can load it."""
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", target, wheel, cwd=target.parent)
    return only(target, "*-manylinux_*.whl")


def environment(folder: Path) -> Path:
    """An empty one; returns where its programs are."""
    venv.create(folder / "venv", with_pip=True)
    return folder / "venv" / "bin"


def check_installed(wheel: Path, programs: Path, folder: Path) -> None:
    """The library works, natively, the command answers, and says which extra is missing."""
    run(programs / "pip", "install", "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
    run(programs / "pip", "check", cwd=folder)
    installed = run(programs / "pip", "list", "--format=freeze", cwd=folder).lower().split()
    heavy = HEAVY & {line.partition("==")[0] for line in installed}
    require(not heavy, f"an installation without extras brings {sorted(heavy)}")

    run(programs / "python", "-c", USE, cwd=folder)
    check_kernels(programs, folder, native=True)
    version = wheel.name.split("-")[1]
    said = run(programs / "topkloss", "--version", cwd=folder)
    require(version in said, f"topkloss --version must say {version}; it says {said!r}")
    said = run(programs / "topkloss", "train", cwd=folder, code=2)
    require("topkloss[train]" in said or '.[train]"' in said, f"topkloss train must name its extra; it says {said!r}")
    require("Traceback" not in said, f"topkloss train must answer in a sentence; it says {said!r}")
    left = {path.name for path in folder.iterdir()} - {"venv"}
    require(not left, f"topkloss train left {sorted(left)} behind")


def check_kernels(programs: Path, folder: Path, *, native: bool) -> None:
    """They are the native ones or the portable ones, and `topkloss doctor` says so."""
    run(programs / "python", "-W", "ignore", "-c", NATIVE if native else PORTABLE, cwd=folder)
    said = run(programs / "topkloss", "doctor", cwd=folder)
    expected = "kernels   native, " if native else "kernels   portable: the native ones were not built. No C++ compiler"
    require(expected in said, f"topkloss doctor must say {expected!r}; it says\n{said}")


def install(programs: Path, folder: Path, *what: str | Path, code: int = 0, **variables: str) -> str:
    """Installs topkloss in the place of the one that is there; what it needs is there too."""
    return run(
        *(programs / "pip", "install", "--force-reinstall", "--no-deps", "--no-cache-dir", *what),
        cwd=folder,
        code=code,
        **variables,
    )


def check_without_compiler(sdist: Path, programs: Path, folder: Path) -> None:
    """Where CMake finds none, the installation goes without the native kernels."""
    install(programs, folder, sdist, CXX="there-is-no-such-compiler")
    run(programs / "python", "-c", USE, cwd=folder)
    check_kernels(programs, folder, native=False)


def check_source(sdist: Path, programs: Path, folder: Path) -> float:
    """Installing from source takes little time, once what builds it is there; returns the seconds."""
    run(programs / "pip", "install", "scikit-build-core", "cmake", "ninja", cwd=folder)
    start = time.perf_counter()
    install(programs, folder, "--no-build-isolation", sdist)
    seconds = time.perf_counter() - start
    require(seconds < LONGEST_INSTALLATION, f"it must take less than {LONGEST_INSTALLATION} s; took {seconds:.0f} s")
    check_kernels(programs, folder, native=True)
    return seconds


def check_editable(sdist: Path, programs: Path, folder: Path) -> None:
    """An editable installation serves natively too, from the sources; a mistake in C++ ends it."""
    sources = folder / "sources"
    with tarfile.open(sdist) as archive:
        archive.extractall(sources, filter="data")
    checkout = only(sources, "*")
    install(programs, folder, "--editable", checkout)
    check_kernels(programs, folder, native=True)
    where = run(
        programs / "python", "-W", "ignore", "-c", "import topkloss; print(topkloss.__file__)", cwd=folder
    ).strip()
    require(Path(where).is_relative_to(checkout.resolve()), f"it must be imported from {checkout}; it is from {where}")

    with (checkout / CSRC / "parallel.cpp").open("a") as file:
        file.write("this is no C++\n")
    said = install(programs, folder, checkout, code=1)
    require("parallel.cpp" in said, f"a compiler's error must be shown; it says\n{said}")
    shutil.rmtree(sources)


def main(target: Path | None = None) -> None:
    """Runs all checks, and says how long each took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built, direct, many, elsewhere = (folder / part for part in ("built", "direct", "many", "elsewhere"))
        for part in (built, direct, many, elsewhere):
            part.mkdir()
        start = time.perf_counter()

        def step(sentence: str) -> None:
            nonlocal start
            print(f"{time.perf_counter() - start:6.1f} s  {sentence}", flush=True)
            start = time.perf_counter()

        build(ROOT, built)
        build(ROOT, direct, "--wheel")
        wheel, sdist = only(built, "*.whl"), only(built, "*.tar.gz")
        step("sdist and wheel are built")

        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=folder)
        check_contents(wheel, sdist)
        same: Sequence[str] = wheel_files(only(direct, "*.whl"))
        require(wheel_files(wheel) == same, "the sdist builds another wheel than the checkout")
        step("they hold what they must, and nothing else")

        wheel = for_many_linuxes(wheel, many)
        step(f"{wheel.name} is what others can install")

        programs = environment(elsewhere)
        check_installed(wheel, programs, elsewhere)
        step("the wheel works in an empty environment, natively")

        check_without_compiler(sdist, programs, elsewhere)
        step("without a compiler the sdist is installed too; the portable kernels serve")

        seconds = check_source(sdist, programs, elsewhere)
        step(f"with one it is installed in {seconds:.0f} s, downloads apart")

        check_editable(sdist, programs, elsewhere)
        step("an editable installation serves natively; one with a mistake in C++ fails")

        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
            for file in (sdist, wheel):
                print(shutil.copy2(file, target))


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except Wrong as error:
        sys.exit(str(error))
