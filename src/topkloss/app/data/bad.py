"""An image that cannot be used, and the sentences that more than one reader of images says."""

from __future__ import annotations

from pathlib import Path

from PIL import UnidentifiedImageError

from topkloss.app.errors import shown

__all__ = ["MOST_PIXELS", "BadImage", "too_large", "unreadable"]

# An image that would decode to more pixels than this is refused from its header.
MOST_PIXELS = 50_000_000


class BadImage(Exception):
    """An image that cannot be used.

    Attributes:
        what: The middle of a sentence.
        reason: The same in a few words, without the name of the file.
        hint: The end of the sentence; None for leaving the image out.
    """

    def __init__(self, what: str, reason: str, hint: str | None = None) -> None:
        super().__init__(what, reason, hint)  # so it can be pickled
        self.what = what
        self.reason = reason
        self.hint = hint


def too_large(path: Path) -> BadImage:
    """More pixels than are decoded."""
    most = MOST_PIXELS // 1_000_000
    return BadImage(
        f"an image must have {most} million pixels or fewer; got more in {shown(path)}.",
        f"more than {most} million pixels",
        "Scale it down.",
    )


def unreadable(path: Path, error: Exception) -> BadImage:
    """What a decoder, or the system, says."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "no known image format"
    reason = shown(" ".join(reason.split()))
    return BadImage(f"cannot read the image {shown(path)}: {reason}.", reason)
