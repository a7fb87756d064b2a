"""Mutation testing of the maths: changes one operator at a time and asks whether a test notices.

    python -m scripts.mutation                       # all of ranking and aggregates: hours
    python -m scripts.mutation ranking/groups.py     # some of them

cosmic-ray makes the changes. Each is tried in a process of its own, on a copy of the package, forked from one that has
torch and the test tools loaded already. Every change that no test notices must be explained in
`mutation_survivors.csv`; one that is not, or an explanation of one that is noticed now, is an error (exit code 1).
Changes to type annotations are left out: they are never executed.
"""

from __future__ import annotations

import ast
import csv
import difflib
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "topkloss"
EXPLAINED = Path(__file__).with_name("mutation_survivors.csv")
RANKING = ("ranking", "native_ranking", "tensor_ranking", "groups", "rank", "selection")
MODULES = (*(f"ranking/{name}.py" for name in RANKING), "aggregates/average.py", "aggregates/cross_entropy.py")
# First a glance, the oracles and few random batches; what it does not notice is tried in full. What tries the threshold
# alone, or compiles machine code, is left out.
SELECTION = "tests/test_selection.py"
ROUNDS = {
    "glance": [
        f"{SELECTION}::test_selection_is_the_oracles_with_drop_and_scores",
        f"{SELECTION}::test_weights_and_threshold_are_the_oracles",
        "tests/test_errors.py",
        "tests/test_laws.py",
    ],
    "asked": [SELECTION, "tests/test_criterion.py", "tests/test_torch.py", "tests/test_laws.py"],
}
LEFT_OUT = "not all_ways and not pivots and not machine_code"
# One operator becomes each of these only: the others (shifts, powers, remainders) fail at once or say the same.
INSTEAD = ("_Add", "_Sub", "_Mul", "_Div", "_BitAnd", "_BitOr")
LONGEST = 600  # seconds; a change that makes the tests take longer is noticed


class Mutant(NamedTuple):
    """A changed module; it is known by the line before and the line after the change."""

    module: str
    source: str
    before: str
    after: str


def main() -> int:
    """Tries all changes; says which are not noticed and not explained."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded
    for name in ("hypothesis", "scipy.optimize", "torch._dynamo.testing"):
        importlib.import_module(name)
    modules = sys.argv[1:] or MODULES
    mutants = [mutant for module in modules for mutant in _mutants(module)]
    number = len(mutants)
    for round_ in ROUNDS:
        mutants = _unnoticed(mutants, round_)
    unnoticed = {(mutant.before, mutant.after) for mutant in mutants}
    with EXPLAINED.open(newline="") as file:
        explained = {(row["before"], row["after"]) for row in csv.DictReader(file)}
    if sys.argv[1:]:  # of the other modules nothing is known
        explained &= unnoticed
    for title, changes in (("no explanation", unnoticed - explained), ("noticed now", explained - unnoticed)):
        for before, after in sorted(changes):
            print(f"{title}:\n  - {before}\n  + {after}")
    print(f"{number} changes, {len(unnoticed)} not noticed")
    return int(unnoticed != explained)


def _unnoticed(mutants: list[Mutant], round_: str) -> list[Mutant]:
    """Those on which all tests of a round pass."""
    waiting, running, unnoticed = mutants[::-1], dict[int, Mutant](), list[Mutant]()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            if waiting and len(running) < (os.cpu_count() or 1):
                mutant = waiting.pop()
                running[_start(mutant, round_, Path(folder) / str(len(waiting)))] = mutant
                continue
            process, status = os.wait()
            mutant = running.pop(process)
            if status == 0:
                unnoticed.append(mutant)
                print(f"{round_}, {len(waiting)} to go:\n  - {mutant.before}\n  + {mutant.after}", flush=True)
    return unnoticed


def _mutants(module: str) -> Iterator[Mutant]:
    """All changes of a module but those to annotations."""
    source = (PACKAGE / module).read_text()
    annotations = _annotations(source)
    with tempfile.TemporaryDirectory() as folder, use_db(Path(folder) / "session.sqlite") as session:
        init([PACKAGE / module], session, {})
        for item in session.work_items:
            (change,) = item.mutations
            if change.operator_name.startswith("core/ReplaceBinary") and not change.operator_name.endswith(INSTEAD):
                continue
            if any(start <= change.start_pos < end for start, end in annotations):
                continue
            changed = mutate_code(source, get_operator(change.operator_name)(), change.occurrence)
            lines = list(difflib.ndiff(source.splitlines(), changed.splitlines()))
            before, after = (" ".join(line[2:].strip() for line in lines if line[0] == sign) for sign in "-+")
            yield Mutant(module, changed, before, after)


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations stand: (line, column) of their starts and ends."""
    nodes = [
        note
        for node in ast.walk(ast.parse(source))
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if note is not None
    ]
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in nodes]


def _start(mutant: Mutant, round_: str, folder: Path) -> int:
    """Starts the tests on a mutant; their process ends with 0 where they pass."""
    process = os.fork()
    if process:
        return process
    _copy_package(folder)
    (folder / "topkloss" / mutant.module).write_text(mutant.source)
    os.environ["TOPKLOSS_HYPOTHESIS"] = round_
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    os.chdir(ROOT)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    signal.alarm(LONGEST)
    quietly = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore"]
    code = pytest.main([*quietly, "-k", LEFT_OUT, *ROUNDS[round_]])
    assert str(sys.modules["topkloss"].__file__).startswith(str(folder))
    os._exit(code)


def _copy_package(folder: Path) -> None:
    """Puts a copy of the package, its native kernels too, before every other: an editable installation has a finder."""
    library = importlib.util.find_spec("topkloss.kernels._native")
    shutil.copytree(PACKAGE, folder / "topkloss", ignore=shutil.ignore_patterns("__pycache__"))
    if library is not None and library.origin is not None:
        shutil.copy(library.origin, folder / "topkloss" / "kernels")
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")]
    for name in [name for name in sys.modules if name.partition(".")[0] == "topkloss"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))


if __name__ == "__main__":
    sys.exit(main())
