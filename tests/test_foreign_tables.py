"""Tables of features as spreadsheets write them: decimal commas, thousands, percent, and names in two codings."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from topkloss.app.cli import main
from topkloss.app.errors import InputError
from topkloss.app.tasks.tables.config import TableConfig, checked
from topkloss.app.tasks.tables.evaluate import load_table_run
from topkloss.app.tasks.tables.predict import write_table_predictions
from topkloss.app.tasks.tables.source import Data, read_data

chance = random.Random(3)
ROWS = [(f"{chance.gauss(0, 1):.3f}", f"{chance.random() * 4000:.2f}", "xy"[n % 2]) for n in range(60)]
LABELS = ["yes" if n % 3 else "no" for n in range(60)]


def written(sign: str, separator: str, numbers: bool = False) -> str:
    lines = [separator.join(("a", "b", "word", "label"))]
    for (a, b, word), label in zip(ROWS, LABELS, strict=True):
        cells = (a, b, word, b if numbers else label)
        lines.append(separator.join(cell.replace(".", sign) if cell != word else cell for cell in cells))
    return "\n".join(lines) + "\n"


def read(path: Path, text: str | bytes, **options: object) -> Data:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_data(checked(TableConfig(csv=str(path), **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_decimal_commas_between_semicolons_are_points(task: str, tmp_path: Path) -> None:
    plain = read(tmp_path / "en.csv", written(".", ",", task == "regression"), task=task)
    german = read(tmp_path / "de.csv", written(",", ";", task == "regression"), task=task)
    assert german.kinds == plain.kinds
    for name in ("a", "b"):
        np.testing.assert_array_equal(german.rows.numbers[name], plain.rows.numbers[name])
    np.testing.assert_array_equal(german.labels, plain.labels)
    assert german.table.commas == {"a", "b", *(["label"] if task == "regression" else [])}
    assert plain.table.commas == frozenset()


def test_points_between_semicolons_are_points(tmp_path: Path) -> None:
    plain, semicolons = (read(tmp_path / "t.csv", written(".", sign)) for sign in ",;")
    np.testing.assert_array_equal(semicolons.rows.numbers["b"], plain.rows.numbers["b"])


def test_a_run_on_commas_predicts_a_table_of_points_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "de.csv").write_text(written(",", ";"))
    (tmp_path / "en.csv").write_text(written(".", ","))
    asked = ["--task", "classification", "--fractions", "1", "--C", "1", "--out", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "de.csv"), *asked]) == 0
    assert "decimal commas were read as points: a, b" in capsys.readouterr().out
    run = load_table_run(tmp_path / "run")
    for name in ("de", "en"):
        write_table_predictions(run, [tmp_path / f"{name}.csv"], tmp_path / f"{name}-out.csv")
    assert (tmp_path / "de-out.csv").read_text() == (tmp_path / "en-out.csv").read_text()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "en.csv")]) == 0


@pytest.mark.parametrize("where", ["the same column", "another one"])
def test_points_beside_decimal_commas_may_be_thousands(where: str, tmp_path: Path) -> None:
    text = written(",", ";")
    if where == "the same column":
        text = text.replace(text.splitlines()[5].split(";")[1], "1.234")
    else:
        text = "\n".join(line + (";c" if not n else f";1.{n + 100}") for n, line in enumerate(text.splitlines()))
    with pytest.raises(InputError, match=r"decimal commas must have no points in its numbers; got '1\.\d+' in `[bc]`"):
        read(tmp_path / "t.csv", text)


def test_points_of_a_column_that_is_no_number_are_let_be(tmp_path: Path) -> None:
    lines = written(",", ";").splitlines()
    text = "\n".join(line + (";version" if not n else f";1.{n % 3}") for n, line in enumerate(lines))
    found = read(tmp_path / "t.csv", text, categorical=("version",))
    assert set(found.rows.words["version"]) == {"1.0", "1.1", "1.2"}
    assert read(tmp_path / "t.csv", text, ignore=("version",)).kinds.numbers == ("a", "b")


def column(value: Callable[[int], str]) -> str:
    lines = written(".", "\t").splitlines()
    return "\n".join(f"{value(n)}\t{line}" if n else f"c\t{line}" for n, line in enumerate(lines))


# Full-width forms, as keyboards of East Asia write them.
WIDE = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1)}

SPELT: dict[str, tuple[Callable[[int], str], str]] = {
    "percent": (lambda n: f"{n} %", "must be numbers without a percent sign; got '1 %'. Write 12 or 0.12, the same in"),
    "percent and commas": (lambda n: f"{n},5%", "without a percent sign; got '1,5%'."),
    "percent beside numbers": (lambda n: f"{n}%" if n % 2 else str(n), "without a percent sign; got '1%'."),
    "thousands": (lambda n: f"1,{100 + n}", "must be numbers without commas; got '1,101'. Write 1234 for 1,234 if the"),
    "thousands beside others": (
        lambda n: f"1,{100 + n}" if n % 2 else str(n),
        "Write 1234 for 1,234 if the comma parts",
    ),
    "thousands and points": (
        lambda n: f"1,{100 + n}.5",
        "without separators of thousands; got '1,101.5'. Write 1234.5",
    ),
    "millions": (lambda n: f"1,000,{100 + n}", "without separators of thousands; got '1,000,101'."),
    "thousands of Germany": (lambda n: f"1.{100 + n},5", "got '1.101,5'. Write 1234.5 for 1.234,5"),
    "thousands of France": (lambda n: f"1\N{NARROW NO-BREAK SPACE}{100 + n}", "without separators of thousands; got "),
    "thousands of Switzerland": (lambda n: f"1'{100 + n}", "without separators of thousands; got "),
    "decimal commas": (lambda n: f"{n},5", "must have points in its numbers; got '1,5'. Write them with points"),
    "dollars": (lambda n: f"${n}.50", "must be numbers without a currency; got '$1.50'. Leave the sign out"),
    "euros": (lambda n: f"{n},50 €", "must be numbers without a currency; got '1,50 €'."),
    "lakhs": (
        lambda n: f"1,{10 + n},400",
        "without separators of thousands; got '1,11,400'. Write 123400 for 1,23,400",
    ),
    "lakhs that repeat": (lambda n: f"1,2{n % 2},400", "without separators of thousands; got '1,21,400'."),
    "per mille": (lambda n: f"{n % 3}‰", "without a sign of per mille; got '1‰'. Write 0.005 for 5‰"),
    "negative dollars": (lambda n: f"-${n % 3}", "must be numbers without a currency; got '-$1'."),
    "francs": (lambda n: f"CHF {n % 3}'000.50", 'must be numbers without a currency; got "CHF 1\'000.50".'),
    "US dollars": (lambda n: f"{n % 3} USD", "must be numbers without a currency; got '1 USD'."),
    "rupees": (lambda n: f"₹{n % 3},500", "must be numbers without a currency; got '₹1,500'."),
    "a loss of dollars": (lambda n: f"(${n % 3})", "must be numbers without a currency; got '($1)'."),
    "a loss of accountants": (lambda n: f"({n % 3}.50)", "minus sign before its numbers; got '(1.50)'. Write -1 for"),
    "a minus behind": (lambda n: f"{n % 3}.5-", "minus sign before its numbers; got '1.5-'."),
    "wide digits": (
        lambda n: f"{n % 3}.5".translate(WIDE),
        "in the digits and signs of a keyboard; got '" + "1.5".translate(WIDE),
    ),
    "wide percent": (
        lambda n: f"{n % 3}%".translate(WIDE),
        "in the digits and signs of a keyboard; got '" + "1%".translate(WIDE),
    ),
    "a minus of print": (lambda n: f"\N{MINUS SIGN}{n}", "must have the minus sign of a keyboard; got "),
}


@pytest.mark.parametrize(("value", "sentence"), SPELT.values(), ids=SPELT.keys())
def test_each_spelling_of_numbers_has_its_own_advice(
    value: Callable[[int], str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(column(value))
    assert main(["check", str(tmp_path / "t.csv"), "--task", "classification"]) == 2
    said = capsys.readouterr().out
    assert "t.csv, line 2: `c` must " in said
    assert sentence in said
    assert "--categorical 'c'" in said


DATES: tuple[str, ...] = (
    "{:02d}.01.2024",
    "{}.1.2024",
    "1/{}/2024",
    "{}/1/2024",
    "2024/01/{:02d}",
    "{:02d}-01-2024",
    "{:02d}.01.24",
)
DATES += ("1/{}/24", "{} Jan 2024", "January {}, 2024", "{:02d}-Jan-24", "{:02d}.01.2024 12:30", "1/{}/2024 1:05:00 PM")


@pytest.mark.parametrize("form", DATES)
def test_dates_are_no_words(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(column(lambda n: form.format(13 + n % 3)))
    assert main(["check", str(tmp_path / "t.csv"), "--task", "classification"]) == 2
    assert (
        f"`c` must be a number or a word; got the date {form.format(14)}. Pass --ignore 'c'" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "form", ["1.{}.3", "10.20.{:04d}", "may {}", "{}/x", "ABC {}", "32.01.20{}", "{}-{}-2024x", "({})x"]
)
def test_words_with_digits_are_words(form: str, tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", column(lambda n: form.format(*(13 + n % 3,) * 2)))
    assert "c" in found.kinds.words


def semicolons(value: Callable[[int], str], beside: Callable[[int], str]) -> str:
    return "c;d;label\n" + "".join(f"{value(n)};{beside(n)};{label}\n" for n, label in enumerate(LABELS))


@pytest.mark.parametrize("value", ["1.{:03d}", "-12.{:03d}"])
def test_points_that_may_part_thousands_are_refused(value: str, tmp_path: Path) -> None:
    text = semicolons(lambda n: value.format(n) if n % 5 else str(900 + n % 50), str)
    first = value.format(1)
    with pytest.raises(
        InputError, match=r"t\.csv, line 3: between semicolons, .*; got '.*' in `c`\. Write "
    ) as refused:
        read(tmp_path / "t.csv", text)
    assert f"Write {first.replace('.', '')} if the point parts thousands, {first}0 if it is decimal, or pass" in str(
        refused.value
    )
    assert read(tmp_path / "t.csv", text.replace(first + ";", first + "0;")).rows.numbers["c"][1] == float(first)
    assert read(tmp_path / "t.csv", text.replace(".", "")).rows.numbers["c"][1] == float(first.replace(".", ""))
    assert read(tmp_path / "t.csv", text, ignore=("c",)).kinds.numbers == ("d",)
    assert read(tmp_path / "t.csv", text.replace(";", ",")).rows.numbers["c"][1] == float(first)


@pytest.mark.parametrize("beside", ["0.5", "1.25", "0.125", "1.2345"])
def test_points_beside_decimals_are_decimals(beside: str, tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", semicolons(lambda n: f"1.{n:03d}", lambda n: beside if n % 2 else str(n)))
    assert found.rows.numbers["c"][1] == 1.001


def test_a_column_with_larger_numbers_has_decimals(tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", semicolons(lambda n: f"1.{n:03d}" if n % 2 else f"{4000 + n}", str))
    assert found.rows.numbers["c"][1] == 1.001


def test_losses_whose_points_may_part_thousands_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("loss;label\n1.234;a\n2.345;b\n")
    assert main(["inspect", str(tmp_path / "t.csv")]) == 2
    assert "got '1.234' in `loss`. Write 1234 if the point parts thousands, 1.2340 if it is decimal." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("asked", "text", "option"),
    [
        (("check", "--task", "classification"), "1.5,x,no\n2.5,y,yes\n", "--label-column"),
        (("inspect",), "1.5,a\n2.5,b\n", "--loss-column"),
        (("inspect",), "1,5;a\n2,5;b\n", "--loss-column"),
    ],
)
def test_a_table_without_names_is_said_to_need_them(
    asked: tuple[str, ...], text: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert main([asked[0], str(tmp_path / "t.csv"), *asked[1:]]) == 2
    way = f". If that is a row, add a line with the names above it; if not, pass its name as `{option}`."
    assert way in "".join(capsys.readouterr())


def test_a_label_in_percent_has_the_advice_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`c` must be a finite number .* got '1 %'\. Write 12 or 0\.12"):
        read(tmp_path / "t.csv", column(lambda n: f"{n} %"), task="regression", label_column="c", ignore=("label",))


def test_a_word_in_two_codings_is_one(tmp_path: Path) -> None:
    composed = [unicodedata.normalize("NFC", word) for word in ("café", "thé")]
    apart = [unicodedata.normalize("NFD", word) for word in composed]
    words = [*composed, *apart]
    lines = ["a,drink,label"]
    lines += [f"{row[0]},{words[n % 4]},{words[(n // 2) % 2 * 2]}{n % 3}" for n, row in enumerate(ROWS)]
    found = read(tmp_path / "t.csv", "\n".join(lines))
    assert set(found.rows.words["drink"]) == set(composed)
    assert found.classes == tuple(f"{composed[0]}{n}" for n in range(3))
