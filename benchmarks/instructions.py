"""How many instructions the native kernels take on one fixed input: where time is too noisy to guard them.

    python -m benchmarks.instructions

Counted by valgrind, whose processor has AVX2 at most, in a process of its own that opens the library without torch.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from topkloss.kernels import native

__all__ = ["LIMIT", "count", "main", "why_not"]

# Elements of so many classes, 30 % of which are averaged.
ELEMENTS, CLASSES = 4096, 19

# For each logit: scores, k-th largest, value and gradient together. GCC 12 at -O3 gives 15.3; a fifth more fails.
LIMIT = 18.4

CHILD = """
import ctypes, random, sys
from ctypes import c_double, c_float, c_int64, c_void_p, byref, addressof
path, n, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
library = ctypes.CDLL(path)
library.topkloss_vectors.restype = ctypes.c_char_p
library.topkloss_weighted_sum.restype = c_double
class Logits(ctypes.Structure):
    _fields_ = [("logits", c_void_p), *((str(i), c_int64) for i in range(7)), ("targets", c_void_p),
                ("probabilities", c_void_p), ("counts", c_void_p), ("weight", c_void_p), ("smoothing", c_double),
                ("threads", c_int64)]
class Line(ctypes.Structure):
    _fields_ = [("scores", c_void_p), ("type", c_int64), ("counts", c_void_p), ("mass", c_void_p),
                ("mass_type", c_int64), ("n", c_int64), ("threads", c_int64)]
class Groups(ctypes.Structure):
    _fields_ = [("index", c_void_p), ("first", c_int64), ("number", c_int64)]
random.seed(0)
size = n * classes
period = [random.gauss(0, 2) for _ in range(997)]
logits = (c_float * size)(*(period[i * i % 997] + period[i % 991] for i in range(size)))
targets = (c_int64 * n)(*(i * 7 % classes for i in range(n)))
losses, weights, gradient, out = (c_float * n)(), (c_float * n)(), (c_float * size)(), (c_double * 3)()
of = Logits(addressof(logits), 0, 1, classes, n, size, n, 1, addressof(targets), None, None, None, 0.0, 1)
library.topkloss_cross_entropy(byref(of), byref(losses), None)
line, groups = Line(addressof(losses), 0, None, None, 0, n, 1), Groups(None, 0, 1)
library.topkloss_kth_largest(byref(line), c_double(0.3 * n), byref(out))
part, scale = (0.3 * n - out[1]) / out[2], 1 / (0.3 * n)
interval = (c_double * 5)(out[0], part, scale, float("inf"), 1)
value = library.topkloss_weighted_sum(byref(line), byref(groups), byref(interval), c_int64(0), byref(losses))
library.topkloss_weights(byref(line), byref(groups), byref(interval), c_int64(0), byref(weights))
library.topkloss_cross_entropy_gradient(byref(of), byref(weights), byref(gradient))
print(library.topkloss_vectors().decode(), value)
"""


def why_not() -> str:
    """Why nothing can be counted here; empty where it can."""
    if native.LIBRARY is None:
        return "the native kernels were not built"
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def count() -> float:
    """Instructions of a forward and a backward pass, inside of the library, for each logit.

    Raises:
        RuntimeError: If the run fails, or other vectors than AVX2 serve.
    """
    assert native.LIBRARY is not None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={report}"]
        child = [sys.executable, "-S", "-c", CHILD, native.LIBRARY.path, str(ELEMENTS), str(CLASSES)]
        done = subprocess.run([*command, *child], capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout.startswith("avx2 "):
            raise RuntimeError(f"AVX2 must serve under valgrind; got {done.stdout!r}.\n{done.stderr[-2000:]}")
        return _inside(report.read_text(encoding="utf-8"), native.LIBRARY.path) / (ELEMENTS * CLASSES)


def _inside(report: str, library: str) -> int:
    """Of a report of callgrind: what was executed in one object, calls of others not included."""
    names: dict[str, str] = {}
    total, now, of_a_call = 0, "", False
    for line in report.splitlines():
        if line.startswith("ob="):
            number, _, name = line[3:].partition(" ")
            now = names.setdefault(number, name)
        elif line.startswith("cob="):
            number, _, name = line[4:].partition(" ")
            names.setdefault(number, name)
        elif line.startswith("calls="):
            of_a_call = True
        elif re.fullmatch(r"[+*-]?\d* \d+", line):
            total += 0 if of_a_call or now != library else int(line.split()[1])
            of_a_call = False
    return total


def main() -> None:
    """Counts and prints."""
    print(f"{count():.1f} instructions for each logit; at most {LIMIT}")


if __name__ == "__main__":
    main()
