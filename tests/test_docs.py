"""The documentation is true: its examples run, its links lead somewhere, and it says what the code says."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from torch import nn

import topkloss
from tests.laws import LAWS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
ROOMS = [ROOT / "benchmarks" / "README.md", ROOT / "src" / "topkloss" / "kernels" / "README.md"]
MUST_HAVE_EXAMPLES = {
    *("README.md", "CONTRIBUTING.md"),
    *(
        "choosing.md",
        "dataset.md",
        "features.md",
        "maths.md",
        "migrate.md",
        "mining.md",
        "schedules.md",
        "tables.md",
        "terms.md",
        "use.md",
    ),
}

# A fence says what is in it, so that no Python is left out by mistake.
LANGUAGES = {"python", "sh", "console", "text", "toml", "yaml", "csv", "json", "bibtex", "math"}

FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Each Python block and the line on which its code begins."""
    text = read(page)
    found = [(text.count("\n", 0, fence.start(2)), fence) for fence in FENCE.finditer(text)]
    return [(line, fence.group(2)) for line, fence in found if fence.group(1) == "python"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace per page, from top to bottom, in an empty folder; with prompts or without."""
    blocks = python_blocks(page)
    assert blocks or page.name not in MUST_HAVE_EXAMPLES
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks:
        if not code.startswith(">>> "):
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
            continue
        case = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
        report: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(case, out=report.append, clear_globs=False)
        namespace = case.globs
        assert runner.tries > 0
        assert runner.failures == 0, "\n" + "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_says_what_is_in_it(page: Path) -> None:
    text = read(page)
    assert {fence.group(1) for fence in FENCE.finditer(text)} <= LANGUAGES
    assert "```" not in FENCE.sub("", text), "a fence is not closed, or is indented"


def anchors(page: Path) -> set[str]:
    """The names under which the headings of a page can be reached."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *ROOMS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert there.is_relative_to(ROOT), f"{page.name} links out of the project: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}"


def test_the_index_maps_every_page() -> None:
    linked = re.findall(r"\]\(([^)\s]+)\)", read(DOCS / "index.md"))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= set(linked)


# api.md


def documented() -> dict[str, list[str]]:
    """Each name that has a heading, with the lines of its signature."""
    sections = re.findall(
        r"^### `(\S+)`\n\n```text\n(.*?)^```\n\n(\S)", read(DOCS / "api.md"), re.MULTILINE | re.DOTALL
    )
    found = {name: signature.splitlines() for name, signature, _ in sections}
    assert len(found) == read(DOCS / "api.md").count("\n### "), "a heading without signature and sentence, or twice"
    return found


def signature(function: object, name: str) -> str:
    """As the page writes it: no types, the defaults as Python prints them."""
    assert callable(function)
    whole = inspect.signature(function)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in whole.parameters.values()
        if parameter.name != "self"
    ]
    return name + str(whole.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def test_every_public_name_is_documented() -> None:
    assert set(topkloss.__all__) <= documented().keys()


@pytest.mark.parametrize("name", documented())
def test_the_documented_signature_is_the_real_one(name: str) -> None:
    *module, last = name.split(".")
    subject = getattr(importlib.import_module(".".join(["topkloss", *module])), last)
    expected = [signature(subject, last) if callable(subject) else last]
    if subject is topkloss.Selection:  # nobody makes one: what it has
        expected = [f"{last}: {', '.join(attributes_of_selection())}"]
    if inspect.isclass(subject) and issubclass(subject, nn.Module):
        expected.append(signature(subject.forward, "criterion"))
    assert documented()[name] == expected


def attributes_of_selection() -> list[str]:
    """As its docstring names them, in that order."""
    return re.findall(r"^    (\w+): ", inspect.getdoc(topkloss.Selection) or "", flags=re.MULTILINE)


def test_the_docstring_of_selection_names_its_fields() -> None:
    fields = {field.name for field in dataclasses.fields(topkloss.Selection) if not field.name.startswith("_")}
    fields |= {"weights", "kept", "mass"}  # read when they are asked for
    assert fields == set(attributes_of_selection())


# maths.md


def test_the_table_of_laws_is_that_of_the_tests() -> None:
    table = read(DOCS / "maths.md").partition("## The laws")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(LAWS)


# dependencies.md and constraints.txt


def project() -> dict[str, list[str]]:
    """What pyproject.toml asks for: the library's own under "", and each extra but `all`."""
    table = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    wanted = {"": table["dependencies"], **table["optional-dependencies"]}
    del wanted["all"]
    return {extra: [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in texts] for extra, texts in wanted.items()}


def test_every_dependency_has_its_reason() -> None:
    sections = re.split(r"^## ", read(DOCS / "dependencies.md"), flags=re.MULTILINE)[1:]
    explained = {}
    for section in sections:
        heading, _, table = section.partition("\n")
        rows = re.findall(r"^\| ([\w.-]+) \| [^|]+ \| [^|]+ \|$", table, flags=re.MULTILINE)
        explained["" if heading == "The library" else heading.strip("`")] = sorted(set(rows) - {"package"})
    assert explained == {extra: sorted(names) for extra, names in project().items()}


def test_every_dependency_is_pinned_once() -> None:
    lines = [line for line in read(ROOT / "constraints.txt").splitlines() if not line.startswith("#")]
    pins = [line.partition("==")[0] for line in lines]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert pins == sorted(set(pins))
    assert {name for names in project().values() for name in names} <= set(pins)
