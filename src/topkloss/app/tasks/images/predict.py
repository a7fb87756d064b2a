"""Images without labels: the probability of each class, file after file, into a CSV."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from topkloss.app.data.passed import counted_kinds, is_hidden, kind_of, walked
from topkloss.app.errors import InputError
from topkloss.app.runs.cells import name_in
from topkloss.app.runs.files import check_out, written
from topkloss.app.tasks.images.inference import SUFFIXES, Item, outputs
from topkloss.app.tasks.images.run import Run

__all__ = ["Prediction", "find_images", "predict", "write_predictions"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of an image.

    Attributes:
        path: Of the image.
        label: The most probable class, the first of equals; None where the image cannot be read.
        probabilities: Of the classes, in their order; empty where the image cannot be read.
        error: Why it cannot be read; "" where it can.
    """

    path: Path
    label: str | None
    probabilities: tuple[float, ...]
    error: str = ""


def predict(
    run: Run,
    paths: Iterable[str | Path],
    *,
    batch_size: int = 64,
    workers: int | None = 0,
    passed: Counter[str] | None = None,
) -> Iterator[Prediction]:
    """Predictions as they come, in the order of `find_images`; a bad image is a prediction with an `error`.

    Args:
        run: From `topkloss.app.tasks.images.run.load_run`.
        paths: Of images, and of folders of images.
        batch_size: Images that pass through the model together.
        workers: Processes that load images beside this one.
        passed: See `find_images`.

    Raises:
        InputError: If no image is found, an option is out of range or a process that loads images ends.
    """
    found = find_images(paths, passed)
    readable = [path for path, refused in found.items() if not refused]
    return _predictions(run, found, outputs(run, readable, batch_size=batch_size, workers=workers))


def write_predictions(
    run: Run,
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    batch_size: int = 64,
    workers: int | None = 0,
    passed: Counter[str] | None = None,
) -> tuple[int, int]:
    """Writes a CSV: image, class and its probability, error, and a column `p_...` for each class.

    Args:
        run: See `predict`.
        paths: See `predict`.
        out: Ends in ``.csv``. It appears, or is replaced, when all is done.
        batch_size: See `predict`.
        workers: See `predict`.
        passed: See `find_images`.

    Returns:
        The number of lines, and of those with an error.

    Raises:
        InputError: See `predict`; and if all images are bad, or the file cannot be written.
    """
    out = Path(out)
    check_out(out, (".csv",))
    predictions = predict(run, paths, batch_size=batch_size, workers=workers, passed=passed)
    lines = bad = 0
    first = ""
    with written(out) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", "probability", "error", *(f"p_{name}" for name in run.classes)])
        for prediction in predictions:
            lines += 1
            if prediction.error:
                bad += 1
                first = first or f"{prediction.path}: {prediction.error}"
            writer.writerow(_row(prediction, len(run.classes)))
        if lines == bad:
            raise InputError(
                f"`IMAGES` must be images that can be read; got {bad}, none of which can, the first {first}. "
                "Pass others."
            )
    return lines, bad


def find_images(paths: Iterable[str | Path], passed: Counter[str] | None = None) -> dict[Path, str]:
    """Files as they are given; of a folder, and of the folders in it, the files with the suffix of an image, by name.

    Hidden files and folders are passed over; links to folders are not followed, but counted.

    Args:
        paths: Files and folders.
        passed: Here the files of folders that are no images are counted, by suffix, and the links to folders.

    Returns:
        Each path once, with the reason why it is refused, or "": a link out of its folder is, and a folder that
        cannot be listed.

    Raises:
        InputError: If there is none.
    """
    given = [Path(path) for path in paths]
    found: dict[Path, str] = {}
    passed = Counter() if passed is None else passed
    for path in given:
        found |= _inside(path, passed) if os.path.isdir(path) else {path: ""}
    if not found:
        but = f", but {counted_kinds(passed)}" if passed else ""
        raise InputError(
            "`IMAGES` must be images or folders of images; got "
            f"{', '.join(map(str, given[:3])) or 'nothing'}, with none in it{but}. Pass others."
        )
    return found


def _inside(folder: Path, passed: Counter[str]) -> dict[Path, str]:
    found: dict[Path, str] = {}
    real = os.path.realpath(folder)

    def refuse(error: OSError) -> None:
        found[Path(error.filename)] = error.strerror or "cannot be listed"

    for root, names in walked(folder, passed, refuse):
        for name in names:
            if is_hidden(name) or os.path.splitext(name)[1].lower() not in SUFFIXES:
                passed[kind_of(name)] += 1
            else:
                path = Path(root, name)
                leads_out = path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real)
                found[path] = "a link out of the folder" if leads_out else ""
    return found


def _predictions(run: Run, found: dict[Path, str], of_each: Iterator[Item]) -> Iterator[Prediction]:
    for path, refused in found.items():
        logits, error = (None, refused) if refused else next(of_each)
        if logits is None:
            yield Prediction(path, None, (), error)
        else:
            label = run.classes[int(logits.argmax())]
            yield Prediction(path, label, tuple(logits.softmax(0).tolist()))


def _row(prediction: Prediction, classes: int) -> list[object]:
    if prediction.error:
        return [name_in(prediction.path), "", "", name_in(prediction.error), *[""] * classes]
    shown = [f"{probability:.7g}" for probability in prediction.probabilities]
    return [name_in(prediction.path), name_in(prediction.label), f"{max(prediction.probabilities):.7g}", "", *shown]
