"""Tables of features to fit: customers of every kind of column, and real ones of scikit-learn's."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path
from typing import Any

from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

REAL = {"cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
COLUMNS = ("id", "age", "income", "city", "plan", "visits", "mass", "household", "churn")


def write_customers(path: Path, rows: int = 240) -> Path:
    """Numbers, some missing; words; masses; three customers of each household; who leaves depends on most of them."""
    chance = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in range(rows):
            age, visits = chance.randint(18, 90), chance.randint(0, 30)
            income = "" if chance.random() < 0.1 else round(chance.lognormvariate(10, 0.5), 2)
            city, plan = chance.choice(["Bonn", "Köln", "Ulm"]), chance.choice(["S", "M", "L"])
            score = 0.05 * (age - 50) - 0.2 * (visits - 15) + {"S": 2, "M": 0, "L": -2}[plan] + 2 * (income == "")
            churn = "yes" if chance.random() < 1 / (1 + math.exp(1 - score)) else "no"
            mass = chance.choice([1, 2, 3])
            writer.writerow([f"c{row}", age, income, city, plan, visits, mass, f"h{row // 3}", churn])
    return path


def write_real(name: str, path: Path) -> Path:
    """One of scikit-learn's tables, its labels under `target`, as CSV or as Parquet."""
    found: Any = REAL[name](as_frame=True)
    frame = found.frame
    if name != "diabetes":
        frame["target"] = [found.target_names[label] for label in frame["target"]]
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pandas(frame), path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(frame.columns)
        writer.writerows(frame.itertuples(index=False))
    return path
