"""The device that computes: its name as torch has it, or why it cannot be that one."""

from __future__ import annotations

import re

from topkloss.app.errors import InputError, shown

__all__ = ["MEANING", "device_named"]

MEANING = "what computes: cpu, cuda, cuda:N for one of several, mps, or auto for the GPU where there is one"

# What other programs call them.
HABITS = {"gpu": "cuda", "gpus": "cuda", "nvidia": "cuda", "tpu": "auto", "metal": "mps", "": "auto", "none": "auto"}


def device_named(name: str) -> str:
    """The device that an option names, as torch has it; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        InputError: If it is no name, or not there.

    Example:
        >>> device_named("cpu")
        'cpu'
    """
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is None:
        low = name.lower().replace("gpu", "cuda")
        close = f"cuda:{name}" if name.isdecimal() else HABITS.get(name.lower(), low)
        fits = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", close) is not None
        raise InputError(
            f"`--device` must be auto, cpu, cuda, cuda:N or mps; got {shown(name) or 'nothing'}. "
            f"Pass --device {close if fits else 'auto'}."
        )
    import torch  # here: a name that is none is answered without it

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or (name == "mps" and torch.backends.mps.is_available()):
        return name
    if name == "mps":
        raise InputError("`--device` must be there; got mps, and torch finds no Metal on this machine. Leave it out.")
    if not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda or torch.version.hip else "is built for the CPU alone"
        raise InputError(
            f"`--device` must be there; got {name}, and this torch ({torch.__version__}) {why}. Leave it out."
        )
    number, there = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= there:
        sees = "cuda:0 alone" if there == 1 else f"cuda:0 to cuda:{there - 1}"
        raise InputError(
            f"`--device` must be there; got {name}, and torch finds {sees}. Pass --device cuda:{there - 1}."
        )
    return name
