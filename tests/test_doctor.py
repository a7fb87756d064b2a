"""`topkloss doctor` says what serves and why: with the native kernels, without them, and without anything but torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import topkloss
from topkloss.app import doctor
from topkloss.app.cli import main
from topkloss.kernels import native


def library(vectors: str = "avx2", shares_openmp: bool = True) -> native.Library:
    return native.Library(ctypes.CDLL(None), "kernels/_native.so", vectors, shares_openmp)


def lines(text: str) -> dict[str, str]:
    """Each line by its first word."""
    return {line[:10].strip(): line[10:] for line in text.splitlines() if line[0] != " "}


def test_versions_and_what_serves_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = lines(capsys.readouterr().out)
    assert said["topkloss"] == topkloss.__version__
    assert said["torch"] == torch.__version__
    assert said["Python"].startswith(f"{platform.python_version()}, ")
    assert said["threads"].startswith(f"{torch.get_num_threads()}, ")
    assert said["kernels"].startswith("native, with AVX" if native.is_available() else "portable: ")
    if native.LIBRARY is not None:
        assert said["kernels"].endswith(native.LIBRARY.path) == native.is_available()


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (library("avx512"), "native, with AVX-512: kernels/_native.so"),
        (library("avx2"), "native, with AVX2: kernels/_native.so"),
        (library("native"), "native, as compiled for this kind of processor: kernels/_native.so"),
        (library(""), "portable: the native ones need a processor with AVX2 and FMA, which this one lacks. "),
        (None, "portable: the native ones were not built. No C++ compiler was found when topkloss was installed, "),
    ],
)
def test_which_kernels_and_why(found: native.Library | None, sentence: str) -> None:
    assert doctor.kernels(found).startswith(sentence)


@pytest.mark.parametrize(
    ("found", "whose"),
    [
        (library(), "; the native kernels run on those of torch's own OpenMP"),
        (library(shares_openmp=False), "; the native kernels start their own, as this torch brings no OpenMP to share"),
        (library(""), ""),
        (None, ""),
    ],
)
def test_whose_threads(found: native.Library | None, whose: str) -> None:
    assert doctor.threads(found, 3) == "3, as OMP_NUM_THREADS and torch.set_num_threads say" + whose


def test_an_extra_lacks_what_is_not_installed() -> None:
    requirements = [
        "torch>=2.11",
        'torch>=2; extra == "train"',
        "topkloss-lacks-this>=1; python_version < '4' and extra == 'train'",
        "topkloss-and-this[more]; extra == 'train'",
        'torch; extra == "report"',
        'topkloss[train]; extra == "all"',
        'topkloss-lacks-this; extra == "dev"',
    ]
    lacking = doctor.lacking_packages(requirements)
    assert lacking == {"train": ["topkloss-lacks-this", "topkloss-and-this"], "report": []}
    assert doctor.extras(lacking) == [
        "extras    report",
        '          not train, which lacks topkloss-lacks-this, topkloss-and-this: pip install "topkloss[train]"',
    ]
    assert doctor.extras({"tabular": ["scikit-learn"]})[0] == "extras    none"


def test_a_copy_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert "never installed" in lines(doctor.report())["extras"]


@pytest.mark.parametrize("built", [True, False])
def test_as_a_process_with_torch_alone(tmp_path: Path, built: bool) -> None:
    """Another package does not load; where the native kernels are not there, it says so."""
    script = (
        "import importlib.util, sys\n"
        "for name in ('lightning', 'matplotlib', 'mlxtend', 'numpy', 'PIL', 'timm', 'torchmetrics', 'torchvision'):\n"
        "    sys.modules[name] = None\n"
        f"if not {built}:\n"
        "    find = importlib.util.find_spec\n"
        "    importlib.util.find_spec = lambda name, *rest: None if name.endswith('_native') else find(name, *rest)\n"
        "from topkloss.app.cli import main; sys.exit(main(['doctor']))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    said = lines(result.stdout)
    assert list(said) == ["topkloss", "torch", "Python", "kernels", "threads", "extras"]
    assert said["threads"].startswith("1, ")
    assert said["kernels"].startswith("native" if built and native.is_available() else "portable: ")
