"""Mutation testing of the maths: changes one operator at a time and asks whether a test notices.

    python -m scripts.mutation

It works on copies, one per module, with cosmic-ray. Every change that no test notices must be explained in
`mutation_survivors.csv`; one that is not, or an explanation of one that is noticed now, is an error (exit code 1).
Changes to type annotations are left out: they are never executed. It takes about half an hour on two cores.
"""

from __future__ import annotations

import ast
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parent.parent
EXPLAINED = Path(__file__).with_name("mutation_survivors.csv")
MODULES = ("selection", "aggregate")
# The quickest to notice come first.
TESTS = ("situations", "errors", "selection", "criterion", "laws", "torch")
CONFIG = """
[cosmic-ray]
module-path = "src/topkloss/{module}.py"
timeout = 300.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider -W ignore {tests}"
distributor.name = "local"
"""

# The line before and the line after the change: what survivors are known by.
Change = tuple[str, str]


def main() -> int:
    """Runs all mutations; says which survive without an explanation."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [_copy(module, Path(folder) / module) for module in MODULES]
        workers = [_start(copy) for copy in copies]
        for worker in workers:
            worker.wait()
        survivors, number = set(), 0
        for copy in copies:
            with use_db(copy / "session.sqlite", WorkDB.Mode.open) as session:
                for _, result in session.completed_work_items:
                    number += result.worker_outcome != WorkerOutcome.SKIPPED
                    if result.test_outcome == TestOutcome.SURVIVED:
                        survivors.add(_change(result.diff or ""))
    with EXPLAINED.open(newline="") as file:
        explained = {(row["before"], row["after"]) for row in csv.DictReader(file)}
    for title, changes in (("no explanation", survivors - explained), ("noticed now", explained - survivors)):
        for before, after in sorted(changes):
            print(f"{title}:\n  - {before}\n  + {after}")
    print(f"{number} changes, {number - len(survivors)} noticed, {len(survivors)} not")
    return int(survivors != explained)


def _copy(module: str, folder: Path) -> Path:
    """A copy of the project in which one module is to be changed, and the list of changes."""
    folder.mkdir()
    for name in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    tests = " ".join(f"tests/test_{name}.py" for name in TESTS)
    (folder / "config.toml").write_text(CONFIG.format(module=module, python=sys.executable, tests=tests))
    subprocess.run(["cosmic-ray", "init", "config.toml", "session.sqlite"], cwd=folder, env=_paths(folder), check=True)
    annotations = _annotations((folder / "src/topkloss" / f"{module}.py").read_text())
    with use_db(folder / "session.sqlite", WorkDB.Mode.open) as session:
        for item in session.work_items:
            if any(start <= item.mutations[0].start_pos < end for start, end in annotations):
                session.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    return folder


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations stand: (line, column) of their starts and ends."""
    nodes = [
        note
        for node in ast.walk(ast.parse(source))
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if note is not None
    ]
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in nodes]


def _start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cosmic-ray", "exec", "config.toml", "session.sqlite"], cwd=folder, env=_paths(folder))


def _paths(folder: Path) -> dict[str, str]:
    """The copy comes before the installed package; the tools of this environment are found; one thread each."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(folder / "src"), "PATH": path, "OMP_NUM_THREADS": "1"}


def _change(diff: str) -> Change:
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return before, after


if __name__ == "__main__":
    sys.exit(main())
