"""What would mend many problems of a data set at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from topkloss.app.data.finding import Finder
from topkloss.app.data.listing import Listing
from topkloss.app.data.passed import is_hidden
from topkloss.app.errors import in_command, shown

__all__ = ["cures_of"]

# Problems of a kind from which a cure is looked for, names that are looked for, and files among which.
MANY, ASKED, MOST_FILES = 4, 50, 200_000


def cures_of(missing: Sequence[str], listing: Listing, finder: Finder, bad: int) -> tuple[str, ...]:
    """A line for each cure.

    Args:
        missing: The listed names whose files are not there.
        listing: The data set.
        finder: Of its images.
        bad: How many images cannot be used.
    """
    lines = []
    if listing.unit and len(missing) >= MANY:
        folder, found = _better_root(missing, listing)
        if folder is not None:
            lines.append(
                f"`--images {in_command(folder)}` would find {found} of the {len(missing)} that are not there."
            )
        suffixes = Counter(filter(None, map(finder.other_suffix, missing)))
        for suffix, count in suffixes.most_common(1):
            lines.append(
                f"{count} of the {len(missing)} that are not there are there with {shown(suffix)}: correct the list."
            )
    if bad >= MANY:
        lines.append(
            f"`topkloss train {in_command(listing.source)} --on-bad-image skip`, with the options of this check, would "
            f"leave out the {bad} that cannot be used, and count them."
        )
    return tuple(lines)


def _better_root(missing: Sequence[str], listing: Listing) -> tuple[Path | None, int]:
    """The folder, around the table or the images, from which most of the missing names lead to a file."""
    names = [PurePosixPath(name.replace("\\", "/")) for name in missing]
    wanted: dict[str, list[PurePosixPath]] = {}
    for name in islice(names, 0, None, max(1, len(names) // ASKED)):
        wanted.setdefault(name.name, []).append(name)
    votes: Counter[Path] = Counter()
    for above in dict.fromkeys((listing.source.resolve().parent, listing.root)):
        for path in islice(_files(above), MOST_FILES):
            for name in wanted.get(path.name, ()):
                if path.parts[-len(name.parts) :] == name.parts:
                    votes[Path(*path.parts[: -len(name.parts)])] += 1
    if not votes:
        return None, 0
    best = votes.most_common(1)[0][0]
    return best, sum((best / name).is_file() for name in names)


def _files(folder: Path) -> list[Path]:
    found = []
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(above, name) for name in files]
        if len(found) > MOST_FILES:
            break
    return found
