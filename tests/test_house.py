"""The house keeps its walls: who imports whom, how long a file may be, what is public and costs at import, examples."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import topkloss

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "topkloss"

# What is not the core: each room (the longest name that fits), and the extras for what it may import beside torch.
EXTRAS_OF_ROOM = {
    "topkloss.__main__": (),
    "topkloss.app": (),
    "topkloss.app.data": ("train",),
    "topkloss.app.data.heif": ("heic",),
    "topkloss.app.options": ("train",),
    "topkloss.app.progress": ("train",),
    "topkloss.app.report": ("report",),
    "topkloss.app.runs": ("train",),
    "topkloss.app.tasks": ("train",),
    "topkloss.app.tasks.images.export": ("train", "export"),
    "topkloss.app.tasks.images.plot": ("report",),
    "topkloss.app.tasks.tables": ("train", "tabular"),
    "topkloss.tabular": ("tabular",),
}

# Rooms from the ground up: each imports itself and the rooms before it; and what stands on one of them beside.
ORDER = ("base", "kernels", "losses", "ranking", "aggregates", "criteria", "loop", "app")
STANDS_ON = {"tabular": "ranking"}
MOST_ROOMS = 15

# Inside app, from the ground up: a room imports its own and those before it.
ORDER_OF_APP = (
    "errors",
    "alignment",
    "problems",
    "loading",
    "progress",
    "options",
    "data",
    "runs",
    "report",
    "tasks",
    "doctor",
    "cli",
)

# Packages whose import has another name than their distribution.
DISTRIBUTIONS = {"PIL": "pillow", "pillow_heif": "pillow-heif", "sklearn": "scikit-learn", "yaml": "pyyaml"}

LONGEST_FILE = 400
LONGEST_FUNCTION = 60

# "file" or "file::function" -> why it may be longer.
LONGER_WITH_REASON: dict[str, str] = {}

# Characters in a line of Markdown, as many as in one of code; and the page -> why its lines may be longer.
LONGEST_LINE = 120
LONGER_LINES_WITH_REASON: dict[str, str] = {}

# Public names without an example of their own -> why.
NO_EXAMPLE = {
    "Selection": "nobody makes one: `topk_select` returns it, and its example shows it",
    "WORLD": "a value; the page on several processes shows it",
    "DistributedError": "it takes several processes to raise one",
    "MiningStatistics": "nobody makes one: `Monitor.compute` returns it, and the example of `Monitor` shows it",
}

# Of processor time, where torch itself takes this much; on a slower processor as much more.
MILLISECONDS_OF_IMPORT, MILLISECONDS_OF_TORCH = 30, 1300


def module_name(file: Path) -> str:
    """Dotted name, e.g. topkloss.app.data.dataset."""
    parts = ("topkloss", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    """The room outside the core that a module lies in; None = the core."""
    return max((name for name in EXTRAS_OF_ROOM if f"{module}.".startswith(f"{name}.")), key=len, default=None)


FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {module_name(file): file for file in FILES}
CORE = {name for name in MODULES if room(name) is None}


def imports(file: Path, *, deferred: bool = True) -> set[str]:
    """What a file imports, dotted and absolute; without `deferred`, only what it imports when it is imported."""
    found = set()
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if deferred else at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            inside = {f"{origin}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inside or {origin}
    return found


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the file is imported: what is in no function, and under no TYPE_CHECKING."""
    yield tree
    checking = isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test)
    if not checking and not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(tree):
            yield from at_import(child)


def third_party(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"topkloss"}


# walls


def test_the_core_is_found() -> None:
    assert {
        "topkloss",
        "topkloss.ranking.selection",
        "topkloss.aggregates.average",
        "topkloss.criteria.criterion",
    } <= CORE


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_imports_torch_and_the_core_only(name: str) -> None:
    found = imports(MODULES[name])
    allowed = {"torch", "triton"} if name == "topkloss.kernels.triton" else {"torch"}
    assert third_party(found) <= allowed
    assert {other for other in found if other.split(".")[0] == "topkloss"} <= CORE


def test_the_oracle_stands_alone() -> None:
    found = imports(SOURCE / "reference.py")
    assert third_party(found) == set()
    assert not any(name.startswith("topkloss") for name in found), "an oracle must not call what it judges"


@pytest.mark.parametrize("name", sorted(MODULES.keys() - CORE))
def test_a_room_imports_what_its_extra_brings(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = EXTRAS_OF_ROOM[room(name) or ""]
    requirements = project["dependencies"] + [
        one for extra in extras for one in project["optional-dependencies"][extra]
    ]
    brought = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}
    found = third_party(imports(MODULES[name]))
    assert {DISTRIBUTIONS.get(package, package) for package in found} <= brought


@pytest.mark.parametrize("name", ["topkloss.app.cli"])
def test_the_command_starts_without_torch_and_any_extra(name: str) -> None:
    """Nor does anything load them that it imports when it starts, or the packages that hold it."""
    entered, waiting = set[str](), {name}
    while waiting:
        module = waiting.pop()
        entered.add(module)
        found = imports(MODULES[module], deferred=False)
        assert third_party(found) == set(), module
        packages = {".".join(parts[:end]) for parts in [module.split(".")] for end in range(1, len(parts))}
        waiting |= ((found | packages) & MODULES.keys()) - entered


def test_images_and_features_know_nothing_of_each_other() -> None:
    """What fits a table starts no trainer, and what trains on images needs no estimator."""
    entered, waiting = set[str](), {name for name in MODULES if name.startswith("topkloss.app.tasks.tables.")}
    while waiting:
        module = waiting.pop()
        entered.add(module)
        waiting |= (imports(MODULES[module]) & MODULES.keys()) - entered
    assert not {"lightning", "timm"} & {
        package for module in entered for package in third_party(imports(MODULES[module]))
    }
    assert not any(name.startswith("topkloss.app.tasks.images.") for name in entered)
    others = {name for name in MODULES if name.startswith("topkloss.app.")} - entered - {"topkloss.app.tasks.dispatch"}
    assert {"topkloss.app.tasks.images.fit", "topkloss.app.tasks.images.run"} <= others
    assert not {one for name in others for one in imports(MODULES[name]) if one.startswith("topkloss.tabular")}


def test_imports_run_in_one_direction() -> None:
    graph = {name: {other for other in imports(file) if other in MODULES} - {name} for name, file in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_every_room_has_its_place() -> None:
    rooms = {file.stem if file.parent == SOURCE else file.relative_to(SOURCE).parts[0] for file in FILES}
    assert rooms == {*ORDER, *STANDS_ON, "reference", "__init__", "__main__"}
    assert len(rooms) <= MOST_ROOMS


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.count(".") > 1))
def test_no_arrow_runs_up_between_rooms(name: str) -> None:
    own = name.split(".")[1]
    until = ORDER.index(STANDS_ON.get(own, own))
    below = {own, *ORDER[: until + (own in STANDS_ON)], *(STANDS_ON if own == "app" else ()), "reference"}
    found = {other.split(".")[1] for other in imports(MODULES[name]) if other.startswith("topkloss.")}
    assert found <= below


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("topkloss.app.")))
def test_inside_app_a_room_imports_those_below_it(name: str) -> None:
    own = ORDER_OF_APP.index(name.split(".")[2])
    rooms = {other.split(".")[2] for other in imports(MODULES[name]) if other.startswith("topkloss.app.")}
    assert rooms <= set(ORDER_OF_APP[: own + 1])


def test_one_name_is_one_module_of_app() -> None:
    """But for the verbs, which each task has under the same name."""
    found: dict[str, set[str]] = {}
    for name in MODULES:
        if name.startswith("topkloss.app."):
            package, _, base = name.rpartition(".")
            found.setdefault(base, set()).add(package)
    twice = {base: packages for base, packages in found.items() if len(packages) > 1}
    tasks = {name.rpartition(".")[0] for name in MODULES if name.startswith("topkloss.app.tasks.") and "fit" in name}
    assert {base: packages for base, packages in twice.items() if not packages <= tasks} == {}


# size


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Each function and its length in lines, its docstring not counted."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield f"{file.relative_to(SOURCE)}::{node.name}", lines


def test_no_file_and_no_function_is_too_long() -> None:
    lengths = {str(file.relative_to(SOURCE)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}
    too_long |= {name: lines for file in FILES for name, lines in functions(file) if lines > LONGEST_FUNCTION}
    assert {name: lines for name, lines in too_long.items() if name not in LONGER_WITH_REASON} == {}
    assert LONGER_WITH_REASON.keys() <= too_long.keys(), "no longer too long: take it off the list"


def long_lines(text: str) -> list[int]:
    """The numbers of the lines of Markdown that are too long and could be broken: no table, no code, not one word."""
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fenced = not fenced
        breakable = not fenced and not line.startswith("|") and " " in line.strip()
        if breakable and len(line) > LONGEST_LINE:
            found.append(number)
    return found


def test_long_lines_are_found() -> None:
    words, link = "word " * 30, "x" * 150
    assert long_lines(f"{words}\n\n| {words} |\n\n{link}\n\n```text\n{words}\n```\n\n- {words}") == [1, 11]


def test_no_line_of_markdown_is_too_long() -> None:
    pages = [page for page in written_by_hand() if page.suffix == ".md"]
    too_long = {str(page.relative_to(ROOT)): long_lines(page.read_text(encoding="utf-8")) for page in pages}
    assert {"README.md", "docs/maths.md", "benchmarks/README.md", *LONGER_LINES_WITH_REASON} <= too_long.keys()
    too_long = {page: lines for page, lines in too_long.items() if lines}
    assert {page: lines for page, lines in too_long.items() if page not in LONGER_LINES_WITH_REASON} == {}
    assert LONGER_LINES_WITH_REASON.keys() <= too_long.keys(), "no longer too long: take it off the list"


# the public names


def test_public_names_are_the_same_for_python_and_for_type_checkers() -> None:
    """`__all__`, what is imported under TYPE_CHECKING, and what the modules that are loaded say themselves."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    checked = {
        node.module: [alias.name for alias in node.names]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("topkloss.")
    }
    loaded = {module: importlib.import_module(module).__all__ for module in topkloss._MODULES}
    assert {module: sorted(names) for module, names in loaded.items()} == {
        str(module): sorted(names) for module, names in checked.items()
    }
    assert sorted(topkloss.__all__) == sorted(name for names in loaded.values() for name in names)
    assert len(set(topkloss.__all__)) == len(topkloss.__all__) == 36
    rooms = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "topkloss"
        for alias in node.names
    }
    assert rooms == topkloss._ROOMS == {name.split(".")[1] for name in CORE - {"topkloss", "topkloss.reference"}}


LAZY = """
import sys, topkloss, topkloss.app
print(topkloss.app.TrainConfig.__name__, "torch" in sys.modules)
print("torch" in sys.modules, {*topkloss.__all__, "losses", "__version__"} <= set(dir(topkloss)))
print(hasattr(topkloss, "nothing"), hasattr(topkloss, "losses_"), "torch" in sys.modules)
print(topkloss.losses.hinge_loss.__name__, topkloss.loop.schedule.LinearFraction is topkloss.LinearFraction)
from topkloss import *
print(average_top_k.__module__, "torch" in sys.modules)
"""


def test_torch_is_loaded_when_the_first_name_is_used() -> None:
    command = [sys.executable, "-W", "error", "-c", LAZY]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines() == [
        "TrainConfig False",
        "False True",
        "False False False",
        "hinge_loss True",
        "topkloss.aggregates.average True",
    ]


# import


IMPORT = """
import sys, time
start = time.process_time()
import torch
before, between = set(sys.modules), time.process_time()
from topkloss import *
end = time.process_time()
print(1000 * (end - between), 1000 * (between - start), *sorted(set(sys.modules) - before))
"""


def test_import_is_light(tmp_path: Path) -> None:
    # As an installation has it: pip compiles what it installs, so the first of these fills a cache and is not timed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    command = [sys.executable, "-W", "error", "-c", IMPORT]
    fastest = float("inf")
    for attempt in range(6):  # a busy machine may take several tries; a heavy import fails all of them
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        if attempt == 0:
            continue
        own, torchs, *loaded = run.stdout.split()
        assert loaded, "nothing was imported"
        assert [name for name in loaded if name.split(".")[0] != "topkloss"] == []
        fastest = min(fastest, float(own) * min(1.0, MILLISECONDS_OF_TORCH / float(torchs)))
        if fastest < MILLISECONDS_OF_IMPORT:
            return
    pytest.fail(f"`from topkloss import *` adds {fastest:.0f} ms to torch's own; at most {MILLISECONDS_OF_IMPORT} ms")


# examples


def run_examples(module: types.ModuleType) -> None:
    """Runs every example of a module, with torch and the public names at hand."""
    helpers = {"torch": torch, "nn": nn, "F": F}
    namespace = helpers | {name: getattr(topkloss, name) for name in topkloss.__all__} | vars(module)
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for case in doctest.DocTestFinder(exclude_empty=True).find(module, globs=namespace):
        runner.run(case, out=report.append)
    assert runner.failures == 0, "\n" + "".join(report)


@pytest.mark.parametrize("name", sorted(CORE - {"topkloss.kernels.triton"}))
def test_examples_of_the_core(name: str) -> None:
    module = importlib.import_module(name)
    run_examples(module)
    for public in getattr(module, "__all__", []):
        example = getattr(module, public).__doc__ or ""
        assert ">>> " in example or public in NO_EXAMPLE, f"{name}.{public} has no example"


@pytest.mark.parametrize("name", sorted(MODULES.keys() - CORE - {"topkloss.__main__"}))
def test_examples_of_the_rest(name: str) -> None:
    run_examples(importlib.import_module(name))


# one version, no machine


def test_version_is_the_same_everywhere() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d\S*)\]", changes, flags=re.MULTILINE)
    coming = re.findall(r"^## \[Unreleased\]\n\nBecomes (\d\S*)\.$", changes, flags=re.MULTILINE)
    assert (coming + released)[:1] == [topkloss.__version__]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [topkloss.__version__]


def written_by_hand() -> list[Path]:
    folders = ("src", "docs", "benchmarks", "scripts", ".ci")
    found = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    found += [ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt")] + list(ROOT.glob("*.md"))
    return [file for file in found if file.suffix not in (".pyc", ".png", ".so") and "__pycache__" not in file.parts]


@pytest.mark.parametrize("file", written_by_hand(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_path_of_one_machine(file: Path) -> None:
    homes = r"(?<![\w.])/(?:home|Users|root|tmp|opt|mnt|work|workspace)/\w|[A-Z]:\\\\?Users"
    assert re.findall(homes, file.read_text(encoding="utf-8")) == []
