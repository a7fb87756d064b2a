"""The command as a process: a new interpreter, or a fork of one that has imported everything.

A new interpreter takes seconds until the packages are imported. Where a test asks what the command does, and not what
it imports, the fork answers the same, with output, exit code, environment and current folder of its own.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.ranks import PATIENCE, START

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def run(*arguments: object, cwd: Path, launcher: Sequence[str] = ("-m",)) -> subprocess.CompletedProcess[str]:
    """The command in a new interpreter."""
    command = [sys.executable, *launcher, "topkloss", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=cwd, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()  # gently: torchrun then ends its workers
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, error)


def forked(*arguments: object, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """The command in a fork; with `processes`, in as many, by what torchrun calls."""
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("output", "error")]
        process = START.Process(target=_main, args=(words, cwd, _environment(), streams, processes))
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.terminate()
            process.join()
            raise AssertionError(f"{words} still runs after {PATIENCE:g} s")
        return subprocess.CompletedProcess(words, process.exitcode, *(path.read_text() for path in streams))


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _main(words: list[str], cwd: Path, environment: Mapping[str, str], streams: Sequence[Path], processes: int) -> None:
    """In the place of what a shell does before it starts a program."""
    for descriptor, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)  # the variable is read when torch is loaded
    if processes == 1:
        _command(words)
    else:
        torchrun = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="tests",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            start_method="fork",
        )
        elastic_launch(torchrun, _command)(words)


def _command(words: list[str]) -> None:
    sys.argv = ["topkloss", *words]
    runpy.run_module("topkloss", run_name="__main__", alter_sys=True)
