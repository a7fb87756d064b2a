"""A file of options: YAML, a line per option, read against the options of a config."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from topkloss.app.errors import InputError
from topkloss.app.options.nearest import nearest
from topkloss.app.options.option import Option

__all__ = ["RECORDED", "content_of", "given", "read_config"]

# A key of a run's own config.yaml that is no option: what was recorded beside them.
RECORDED = "recorded"


def read_config(path: Path, known: Mapping[str, Option]) -> dict[str, Any]:
    """The options in a YAML file, by field: ``batch-size: 32``. What a run recorded beside them is left aside.

    Raises:
        InputError: If it cannot be read, a key is no option, or a value is of another kind.
    """
    return given(content_of(path), str(path), known)


def content_of(path: Path) -> dict[Any, Any]:
    """What stands in a file of options, as YAML has it.

    Raises:
        InputError: If it cannot be read, or a key is there twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        names = [key.value for key, _ in yaml.compose(text).value] if isinstance(content, dict) else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"`--config` must be a YAML file in UTF-8; got {path}: {reason}. Pass another.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(
            f"`--config` must hold a line per option, like `batch-size: 32`; got {type(content).__name__} in {path}. "
            "The config.yaml of any run is an example."
        )
    twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        raise InputError(f"{path}: a key must be given once; got {twice[0]} twice. Remove one of the lines.")
    content.pop(RECORDED, None)
    return content


def given(content: Mapping[Any, Any], where: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """Options as they stand in a file, by field, each of its kind.

    Args:
        content: As YAML has it.
        where: The file, for a sentence.
        known: The options, by name.

    Raises:
        InputError: If a key is no option or a value is of another kind.
    """
    read = {}
    for name, value in content.items():
        if name not in known:
            close = nearest(str(name), known)
            advice = f"Did you mean {close}?" if close else "`topkloss train --help` lists them."
            raise InputError(f"{where}: a key must be an option of `topkloss train`; got {name}. {advice}")
        read[known[name].field] = _of_kind(known[name], value, where)
    return read


def _of_kind(one: Option, value: Any, where: str) -> Any:
    """YAML reads 1e-3 as a word, and 32 as a number."""
    if value is None and one.default is None:
        return None
    if one.many:
        several = value if isinstance(value, list) else [value]
        return [_of_kind(replace(one, many=False), each, where) for each in several]
    try:
        if one.kind is bool and not isinstance(value, bool):
            raise ValueError
        if one.kind is str and isinstance(value, bool | list | dict | None):
            raise ValueError
        if one.kind in (int, float) and (isinstance(value, bool) or (one.kind is int and isinstance(value, float))):
            raise ValueError
        read = one.kind(value)
        if one.choices and read not in one.choices:
            raise ValueError
    except (TypeError, ValueError):
        what = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[one.kind]
        wanted = f"one of {', '.join(one.choices)}" if one.choices else what
        raise InputError(f"{where}: `{one.name}` must be {wanted}; got {_short(value)}. Correct the line.") from None
    return read


def _short(value: Any) -> str:
    """A value as Python writes it, but never much of it: a few lines of YAML can stand for a billion words."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 80
    brief.maxlevel = 2
    return brief.repr(value)
