"""What ``topkloss doctor`` says: the versions, which kernels serve and why, and which extras are installed."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Mapping, Sequence

import torch

import topkloss
from topkloss.kernels import native

VECTORS = {"avx512": "with AVX-512", "avx2": "with AVX2", "native": "as compiled for this kind of processor"}

# Extras that are of no use without the repository.
OF_THE_REPOSITORY = {"bench", "dev"}


def report() -> str:
    """The report, in lines.

    Example:
        >>> print(report().splitlines()[0])
        topkloss  0.1.0
    """
    lines = [
        f"topkloss  {topkloss.__version__}",
        f"torch     {torch.__version__}",
        f"Python    {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"kernels   {kernels(native.LIBRARY)}",
        f"threads   {threads(native.LIBRARY, torch.get_num_threads())}",
    ]
    try:
        lines += extras(lacking_packages(importlib.metadata.requires("topkloss") or []))
    except importlib.metadata.PackageNotFoundError:
        lines.append("extras    unknown, as this copy of topkloss was never installed: pip install .")
    return "\n".join(lines)


def kernels(library: native.Library | None) -> str:
    """Which kernels serve tensors on the CPU; where they are the portable ones, why, and what to do.

    Example:
        >>> kernels(native.LIBRARY).split()[0] in ("native,", "portable:")
        True
    """
    if library is None:
        return (
            "portable: the native ones were not built. No C++ compiler was found when topkloss was installed, or this "
            "copy was never installed here. Install GCC or Clang, then topkloss from its source: "
            "pip install --force-reinstall --no-deps ."
        )
    if not library.vectors:
        return (
            "portable: the native ones need a processor with AVX2 and FMA, which this one lacks. Nothing is to be "
            "done: the answers are right, and take longer."
        )
    return f"native, {VECTORS[library.vectors]}: {library.path}"


def threads(library: native.Library | None, number: int) -> str:
    """The number of threads, and whose they are.

    Example:
        >>> threads(None, 4)
        '4, as OMP_NUM_THREADS and torch.set_num_threads say'
    """
    said = f"{number}, as OMP_NUM_THREADS and torch.set_num_threads say"
    if library is None or not library.vectors:
        return said
    if library.shares_openmp:
        return f"{said}; the native kernels run on those of torch's own OpenMP"
    return f"{said}; the native kernels start their own, as this torch brings no OpenMP to share"


def extras(lacking: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for those that are installed, and one for each that is not.

    Args:
        lacking: For each extra the packages that it lacks; see `lacking_packages`.

    Example:
        >>> for line in extras({"report": [], "tabular": ["scikit-learn"]}):
        ...     print(line)
        extras    report
                  not tabular, which lacks scikit-learn: pip install "topkloss[tabular]"
    """
    lines = [", ".join(extra for extra, packages in lacking.items() if not packages) or "none"]
    for extra, packages in lacking.items():
        if packages:
            lines.append(f'not {extra}, which lacks {", ".join(packages)}: pip install "topkloss[{extra}]"')
    return [f"{'' if place else 'extras':8}  {line}" for place, line in enumerate(lines)]


def lacking_packages(requirements: Iterable[str]) -> dict[str, list[str]]:
    """The packages of each extra that are not installed, by name; their versions are pip's to judge (`pip check`).

    Args:
        requirements: As the metadata of an installation has them.

    Example:
        >>> lacking_packages(["torch>=2.11", 'torch; extra == "here"', 'gone>=1; extra == "there"'])
        {'here': [], 'there': ['gone']}
    """
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"""extra == ["']([\w.-]+)["']""", requirement)
        package = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if extra is None or extra[1] in OF_THE_REPOSITORY or package == "topkloss":
            continue  # an extra of extras, `all`, is those
        lacking = found.setdefault(extra[1], [])
        if not _is_installed(package):
            lacking.append(package)
    return found


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
