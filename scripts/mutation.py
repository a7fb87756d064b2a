"""Mutation testing of the maths: changes one operator at a time and asks whether a test notices.

    python -m scripts.mutation

It works on copies, one for each core, with cosmic-ray. Every change that no test notices must be explained in
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
MODULES = ("src/topkloss/selection.py", "src/topkloss/aggregate.py")
# The quickest to notice come first; what tries the threshold alone is left out.
TESTS = (
    "tests/test_situations.py tests/test_errors.py tests/test_criterion.py tests/test_laws.py tests/test_selection.py "
    "tests/test_torch.py -k 'not all_ways and not pivots and not machine_code'"
)
CONFIG = """
[cosmic-ray]
module-path = {modules}
timeout = 300.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider -W ignore {tests}"
distributor.name = "local"
"""

# The line before and the line after the change: what survivors are known by.
Change = tuple[str, str]


def main() -> int:
    """Runs all mutations; says which survive without an explanation."""
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        copies = [_copy(Path(folder) / str(number), number, workers) for number in range(workers)]
        for process in [_start(copy) for copy in copies]:
            process.wait()
        results = [result for copy in copies for result in _results(copy)]
    survivors = {_change(result.diff or "") for result in results if result.test_outcome == TestOutcome.SURVIVED}
    with EXPLAINED.open(newline="") as file:
        explained = {(row["before"], row["after"]) for row in csv.DictReader(file)}
    for title, changes in (("no explanation", survivors - explained), ("noticed now", explained - survivors)):
        for before, after in sorted(changes):
            print(f"{title}:\n  - {before}\n  + {after}")
    print(f"{len(results)} changes, {len(survivors)} not noticed")
    return int(survivors != explained)


def _copy(folder: Path, number: int, workers: int) -> Path:
    """A copy of the project, and its share of the changes to be made there."""
    folder.mkdir()
    for name in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "config.toml").write_text(CONFIG.format(modules=list(MODULES), python=sys.executable, tests=TESTS))
    subprocess.run(["cosmic-ray", "init", "config.toml", "session.sqlite"], cwd=folder, env=_paths(folder), check=True)
    annotations = {module: _annotations((folder / module).read_text()) for module in MODULES}
    with use_db(folder / "session.sqlite", WorkDB.Mode.open) as session:
        changes = sorted(session.work_items, key=lambda item: str(item.mutations))
        for place, item in enumerate(changes):
            (change,) = item.mutations
            typed = any(start <= change.start_pos < end for start, end in annotations[str(change.module_path)])
            if typed or place % workers != number:
                session.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    return folder


def _results(folder: Path) -> list[WorkResult]:
    """Of all changes that were made in a copy."""
    with use_db(folder / "session.sqlite", WorkDB.Mode.open) as session:
        every = [result for _, result in session.completed_work_items]
    return [result for result in every if result.worker_outcome != WorkerOutcome.SKIPPED]


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
