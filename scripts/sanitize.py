"""Runs the tests of the kernels over a library built with the address and undefined-behaviour sanitizers.

``python scripts/sanitize.py`` in an environment that has CMake, GCC and what the tests need. The library lies in a
temporary copy of the package, which is found before any other; a finding ends in the sanitizer's own report and exit
code 1. Python keeps memory until its end by design, so leaks are not looked for.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; ends this program with all of it where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def build(folder: Path) -> Path:
    """A copy of the package with the library in it; returns the folder it is imported from."""
    copy = folder / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    options = ("-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={FLAGS}")
    run("cmake", "-S", ROOT, "-B", folder / "build", *options)
    run("cmake", "--build", folder / "build")
    run("cmake", "--install", folder / "build", "--prefix", copy)
    return copy


def interpreter(folder: Path, copy: Path) -> Path:
    """Of an environment that has the copy and the packages of this one, but no editable installation of this one's."""
    venv.create(folder / "venv")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    packages.joinpath("borrowed.pth").write_text("\n".join([str(copy), *site.getsitepackages()]))
    return folder / "venv" / "bin" / "python"


def variables() -> dict[str, str]:
    """With which a process loads the sanitizers before all else."""
    runtimes = [run("g++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan")]
    return {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    """Builds, makes sure that the tests will use what was built, and runs them."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        copy, environment = build(Path(name)), variables()
        python = interpreter(Path(name), copy)
        ask = "from topkloss.kernels import native; print(native.LIBRARY.path, native.is_available())"
        found = run(python, "-W", "ignore", "-c", ask, environment=environment).split()
        if found != [str(copy / "topkloss" / "kernels" / "_native.so"), "True"]:
            sys.exit(f"the tests must use the native kernels of {copy}; got {' '.join(found)}")
        tests = ("tests/test_kernels.py", "tests/test_targets.py")
        pytest = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *tests)
        said = run(python, *pytest, environment=environment)
    summary = said.strip().splitlines()[-1]
    print(
        f"the address and undefined-behaviour sanitizers find nothing: {summary}, {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
