"""A parser whose errors are one sentence, and name the option or the command that was meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from topkloss.app.errors import shown
from topkloss.app.options.nearest import nearest

__all__ = ["Parser", "refuse_unknown"]

# As argparse says it, and as we do.
KINDS = {"int": "a whole number", "float": "a number", "Path": "a path"}


class Parser(argparse.ArgumentParser):
    """Of a command: after an error it prints one line of usage and one sentence, and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program.

        Args:
            message: Of argparse, or a sentence.
        """
        found = re.match(r"argument (\S+): invalid (\w+) value: (.*)$", message)
        if found:
            name, kind, value = found.groups()
            message = f"`{name}` must be {KINDS.get(kind, kind)}; got {value}. `{self.prog} --help` says what it means."
        elif found := re.match(r"argument ([^\s:]+): expected (.*)$", message):
            message = f"`{found[1]}` must come with {found[2]}; got nothing. `{self.prog} --help` says what it means."
        elif found := re.match(r"argument (\S+): not allowed with argument (\S+)$", message):
            message = f"`{found[1]}` must stand without {found[2]}; got both. Leave one of them out."
        elif found := re.match(r"the following arguments are required: (.*)$", message):
            message = f"`{found[1]}` must be given; got nothing. `{self.prog} --help` lists all that there is."
        self.exit(2, f"usage: {self.prog} ..., explained by `{self.prog} --help`\ntopkloss: {message}\n")


def refuse_unknown(parser: Parser, commands: Mapping[str, Parser], words: Sequence[str]) -> None:
    """Ends the program at the first command or option that is none, before another of its mistakes hides it.

    Args:
        parser: Of the program.
        commands: The parsers of its commands, by name.
        words: What it was called with.
    """
    first = next((place for place, word in enumerate(words) if not word.startswith("-")), None)
    if first is None:
        return
    command = words[first]
    if command not in commands:
        close = nearest(command, commands)
        hint = f"Did you mean {close}?" if close else "`topkloss --help` says what each does."
        parser.error(f"a command must be one of {', '.join(commands)}; got {shown(command)}. {hint}")
    own = commands[command]
    for word in words[first + 1 :]:
        if word == "--":
            return
        name = word.partition("=")[0]
        if name in own._option_string_actions or not re.match(r"--?[A-Za-z]", name):
            continue
        own.error(_unknown(name, command, commands))


def _unknown(name: str, command: str, commands: Mapping[str, Parser]) -> str:
    def options_of(parser: Parser) -> list[str]:
        return [one.removeprefix("--") for one in parser._option_string_actions if one.startswith("--")]

    close = nearest(name, options_of(commands[command]))
    others = [other for other in commands if f"--{name.lstrip('-')}" in commands[other]._option_string_actions]
    if others:
        hint = f"It is one of `topkloss {others[0]}`" + (f"; here there is --{close}." if close else ".")
    elif close:
        hint = f"Did you mean --{close}?"
    else:
        hint = f"`topkloss {command} --help` lists them."
    return f"`{shown(name)}` must be an option of `topkloss {command}`, which has none of that name. {hint}"
