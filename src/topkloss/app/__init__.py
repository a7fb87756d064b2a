"""The command: trains on images or tables, and says what came of it. In Python: `fit`, `resume`, `TrainConfig`.

They are loaded when they are first used: the command answers at once what needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topkloss.app.tasks.images.config import TrainConfig
    from topkloss.app.tasks.images.fit import fit, resume

_MODULES = {
    "TrainConfig": "topkloss.app.tasks.images.config",
    "fit": "topkloss.app.tasks.images.fit",
    "resume": "topkloss.app.tasks.images.fit",
}

__all__ = ["TrainConfig", "fit", "resume"]

if not TYPE_CHECKING:  # a type checker would take every other name for known, too

    def __getattr__(name: str) -> Any:
        """A public name, when it is first used."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return globals()[name]
