"""The command ``topkloss`` from its first moment: ``topkloss`` and ``python -m topkloss`` begin here."""

from __future__ import annotations

import sys

from topkloss.app.loading import loading

__all__ = ["main"]


def main() -> int:
    """Runs the command, as `topkloss.app.cli.main` does.

    Returns:
        The exit code.
    """
    with loading():
        from topkloss.app.cli import main as command
    return command()


if __name__ == "__main__":
    sys.exit(main())
