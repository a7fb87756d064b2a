"""How long the linear models take to a certified accuracy, beside scikit-learn's logistic regression.

``python -m benchmarks.tabular`` draws a dense table of a million rows and a sparse one, solves each problem in a
process of its own, and writes ``benchmarks/tabular.csv``, what docs/tables.md states. scikit-learn's
`LogisticRegression(solver="lbfgs")` minimises the plain mean, with the tolerance at which its weights are as
accurate as those of the others: to 1e-3 of their length. "topkloss" is the solver; "estimator" the whole fit, which
checks the table and, where the zero model is optimal, looks for the smallest fraction for which it is not. A minute or
two on a quiet core; 3 GB of memory.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import platform
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from benchmarks.measure import commit
from topkloss.tabular import AverageTopKClassifier
from topkloss.tabular.design import Design
from topkloss.tabular.losses import CLASSIFICATION
from topkloss.tabular.problem import Problem
from topkloss.tabular.proximal import solve

__all__ = ["LEDGER", "Row", "main"]

LEDGER = Path(__file__).resolve().parent / "tabular.csv"
ACCURACY = 1e-3


@dataclass(frozen=True)
class Row:
    """One problem solved by one provider.

    `seconds` of the solver; `error` of the weights, relative, measured where the plain mean's are known and otherwise
    certified; `peak` memory beyond what was in use before the table was drawn, `data` the table's own, both MiB.
    """

    table: str
    provider: str
    loss: str
    fraction: float
    seconds: float
    steps: int
    error: float
    zero: bool
    peak: float
    data: float
    rows: int
    columns: int
    device: str
    commit: str


def memory() -> float:
    """The most that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(table: str, rows: int, columns: int) -> tuple[Any, Any]:
    """Features, dense normal or 1 % sparse, and labels of a logistic model whose Bayes error is about 0.13."""
    chance = np.random.default_rng(0)
    if table == "dense":
        features: Any = chance.standard_normal((rows, columns))
        weights = chance.normal(size=columns) * 3 / np.sqrt(columns)
    else:
        held = rows * columns // 100
        places = chance.integers(columns, size=held, dtype=np.int32)
        starts = np.linspace(0, held, rows + 1).astype(np.int32)
        features = sparse.csr_array((chance.standard_normal(held), places, starts), shape=(rows, columns))
        weights = chance.normal(size=columns) * 3 / np.sqrt(columns / 100)
    return features, np.where(features @ weights + chance.logistic(size=rows) > 0, 1.0, -1.0)


def measure(table: str, provider: str, loss: str, fraction: float, rows: int, columns: int) -> Row:
    """Draws the table, solves the problem; C S is 1: C is 1/n in scikit-learn's scale."""
    before = memory()
    features, labels = draw(table, rows, columns)
    data = (features.nbytes if table == "dense" else features.data.nbytes + features.indices.nbytes) / 2**20
    strength = 1.0
    if provider == "estimator":
        model = AverageTopKClassifier(loss, fraction=fraction, C=strength / rows, tol=ACCURACY)
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(features, labels)
        seconds = time.perf_counter() - start
        zero = any("too small" in str(warning.message) for warning in caught)
        steps, length = int(model.n_iter_[0]), float(np.linalg.norm(model.coef_))
        error = float(np.sqrt(2 * strength * model.dual_gap_[0])) / length if length else 0.0
    elif provider == "topkloss":
        one = Problem(
            Design(features, intercept=True), labels, CLASSIFICATION[loss], np.ones(rows), fraction * rows, strength
        )
        start = time.perf_counter()
        found = solve(one, tol=ACCURACY, max_iter=1000)
        seconds = time.perf_counter() - start
        assert found.converged
        length = one.norm(found.coefficients)
        error = float(np.sqrt(2 * strength * found.certificate.gap)) / length if length else 0.0
        steps, zero = found.iterations, found.zero
    else:
        seconds, steps, error = plain(features, labels, strength / rows)
        zero = False
    return Row(
        *(table, provider, loss, fraction, round(seconds, 3), steps, float(f"{error:.3g}"), zero),
        *(round(memory() - before), round(data), rows, columns, platform.machine(), commit()),
    )


def plain(features: Any, labels: Any, strength: float) -> tuple[float, int, float]:
    """Seconds, steps and error of scikit-learn's logistic regression, at the tolerance that reaches the accuracy."""
    rows = len(labels)
    one = Problem(
        Design(features, intercept=True), labels, CLASSIFICATION["logistic"], np.ones(rows), rows, strength * rows
    )
    exact = solve(one, tol=ACCURACY / 100, max_iter=1000).coefficients[:-1, 0]
    for tol in 10.0 ** -np.arange(1, 12):
        model = LogisticRegression(C=strength, solver="lbfgs", tol=tol, max_iter=10_000)
        start = time.perf_counter()
        model.fit(features, labels)
        seconds = time.perf_counter() - start
        error = float(np.linalg.norm(model.coef_[0] - exact) / np.linalg.norm(exact))
        if error <= ACCURACY:
            return seconds, int(model.n_iter_[0]), error
    raise AssertionError("the plain mean was not reached")


def alone(*case: Any) -> Row:
    """A measurement in a new process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, case)


def summary(rows: list[Row]) -> str:
    """The table that the page shows."""
    widths = {"table": -8, "provider": -14, "loss": -16, "fraction": 8, "seconds": 8, "x plain": 8, "steps": 6}
    lines = [
        "".join(f"{name:{'<' if width < 0 else '>'}{abs(width)}}" for name, width in widths.items()) + "  peak / data"
    ]
    for row in rows:
        base = next(one for one in rows if one.table == row.table and one.provider == "scikit-learn")
        loss = f"{row.loss}{' (zero)' if row.zero else ''}"
        lines.append(
            f"{row.table:<8}{row.provider:<14}{loss:<16}{row.fraction:>8}{row.seconds:>8.1f}"
            f"{row.seconds / base.seconds:>8.1f}{row.steps:>6}{row.peak / max(row.data, 1):>13.1f}"
        )
    return "\n".join(line.rstrip() for line in lines)


def read(ledger: Path) -> list[Row]:
    """The rows of a ledger."""
    with ledger.open(newline="") as file:
        kinds: dict[str, Callable[[str], Any]]
        kinds = {"str": str, "float": float, "int": int, "bool": lambda text: text == "True"}
        return [
            Row(**{field.name: kinds[str(field.type)](one[field.name]) for field in fields(Row)})
            for one in csv.DictReader(file)
        ]


CASES = [
    ("scikit-learn", "logistic", 1.0),
    ("topkloss", "logistic", 1.0),
    ("topkloss", "logistic", 0.6),
    ("topkloss", "hinge", 0.6),
    ("topkloss", "logistic", 0.1),
    ("estimator", "logistic", 0.6),
    ("estimator", "logistic", 0.1),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", default=["dense", "sparse"], choices=["dense", "sparse"])
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000_000, 100_000], help="of the dense and sparse table")
    parser.add_argument("--columns", type=int, nargs=2, default=[100, 10_000])
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    given = parser.parse_args(arguments)
    rows = []
    for table, number, columns in zip(["dense", "sparse"], given.rows, given.columns, strict=True):
        if table in given.tables:
            cases = CASES if table == "dense" else CASES[:4]
            for case in cases:
                rows.append(alone(table, *case, number, columns))
                print(*astuple(rows[-1]), flush=True)
    with given.ledger.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
