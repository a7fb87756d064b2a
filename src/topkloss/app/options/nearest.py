"""The option that was meant: by its spelling, or by what other programs call it."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["nearest"]

# What timm, Lightning, Hugging Face, scikit-learn, fastai and YOLO call an option, and the names that it may have here,
# the first of which that a command has is meant.
HABITS = {
    **dict.fromkeys(
        ["arch", "architecture", "net", "network", "backbone", "model-name", "model-name-or-path"], "model"
    ),
    **dict.fromkeys(["learning-rate", "lr-rate", "rate", "lr0", "base-lr", "max-lr", "eta"], "lr"),
    **dict.fromkeys(["num-epochs", "n-epochs", "nb-epochs", "max-epochs", "num-train-epochs", "epoch", "ep"], "epochs"),
    **dict.fromkeys(
        ["bs", "b", "batch", "per-device-train-batch-size", "train-batch-size", "mini-batch"], "batch-size"
    ),
    **dict.fromkeys(["gpu", "gpus", "cuda", "accelerator", "devices", "gpu-id", "gpu-ids", "no-cuda", "cpu"], "device"),
    **dict.fromkeys(["j", "num-workers", "n-workers", "nw", "dataloader-num-workers", "n-jobs", "jobs"], "workers"),
    **dict.fromkeys(["wd", "decay", "l2"], "weight-decay"),
    **dict.fromkeys(["optim", "optimizer", "optimiser"], "opt"),
    **dict.fromkeys(["scheduler", "lr-scheduler", "lr-scheduler-type", "lr-schedule"], "sched"),
    **dict.fromkeys(["warmup", "warmup-steps", "warmup-ratio", "warm-up"], "warmup-epochs"),
    **dict.fromkeys(["patience", "early-stop", "early-stopping-patience"], "early-stopping"),
    **dict.fromkeys(["val-split", "val-size", "test-size", "test-split", "validation-split", "valid-pct"], "held-out"),
    **dict.fromkeys(["validation-fraction", "val-fraction", "val", "holdout"], "held-out"),
    **dict.fromkeys(["output", "output-dir", "out-dir", "outdir", "o", "save-dir", "save", "project", "name"], "out"),
    **dict.fromkeys(["default-root-dir", "logdir", "log-dir", "workdir", "work-dir", "destination"], "out"),
    **dict.fromkeys(["img-size", "imgsz", "input-size", "size", "resolution", "res", "img"], "image-size"),
    **dict.fromkeys(["amp", "fp16", "bf16", "mixed-precision", "half"], "precision"),
    **dict.fromkeys(["grad-accum-steps", "gradient-accumulation-steps", "accumulate-grad-batches"], "accumulate"),
    **dict.fromkeys(["grad-accum", "accumulation", "accumulation-steps", "iters-to-accumulate"], "accumulate"),
    **dict.fromkeys(["random-state", "random-seed", "manual-seed"], "seed"),
    **dict.fromkeys(["smoothing", "smooth"], "label-smoothing"),
    **dict.fromkeys(["criterion", "loss-fn", "loss-function", "objective"], "loss"),
    **dict.fromkeys(["top-k", "topk", "k", "keep", "keep-ratio", "ratio", "ohem-ratio", "keep-fraction"], "fraction"),
    **dict.fromkeys(["gamma", "focal"], "focal-gamma"),
    **dict.fromkeys(["resume-from-checkpoint", "ckpt", "ckpt-path", "checkpoint", "continue", "load"], "resume"),
    **dict.fromkeys(["initial-checkpoint", "init", "weight", "load-weights"], "weights"),
    **dict.fromkeys(["model-ema", "model-ema-decay", "ema-decay", "swa"], "ema"),
    **dict.fromkeys(["torchcompile", "torch-compile", "jit"], "compile"),
    **dict.fromkeys(["tensorboard", "logger", "report-to", "wandb", "log-wandb"], "log"),
    **dict.fromkeys(["aa", "augmentation", "augmentations", "aug", "auto-augment", "transforms"], "augment"),
    **dict.fromkeys(["class-weight", "cw", "balance", "balanced"], "class-weights"),
    **dict.fromkeys(["target", "target-column", "label", "labels", "y", "y-column"], "label-column"),
    **dict.fromkeys(["weight-col", "sample-weight", "sample-weights"], "weight-column"),
    **dict.fromkeys(["image-col", "img-column", "path-column", "file-column"], "image-column"),
    **dict.fromkeys(["group", "groups", "group-column", "patient-column"], "group-by"),
    **dict.fromkeys(["image-dir", "images-dir", "img-dir", "image-folder", "root"], "images"),
    **dict.fromkeys(["metric", "scoring", "eval-metric", "metrics"], "score"),
    **dict.fromkeys(["cv", "n-folds", "kfold", "n-splits"], "folds"),
    **dict.fromkeys(["drop-columns", "exclude", "ignore-columns", "id-column"], "ignore"),
    **dict.fromkeys(["na-values", "na", "nan"], "missing"),
    **dict.fromkeys(["cat", "categorical-features", "cat-features"], "categorical"),
    **dict.fromkeys(["plot", "fig", "picture", "save-plot"], "figure"),
    **dict.fromkeys(["verbose", "v", "traceback"], "debug"),
    **dict.fromkeys(["column", "loss-col"], "loss-column"),
    **dict.fromkeys(["split", "subset", "set"], "part"),
    **dict.fromkeys(["cfg", "config-file", "yaml"], "config"),
}


def nearest(name: str, known: Collection[str]) -> str | None:
    """The name that is most probably meant, or None.

    Args:
        name: As it was given: with dashes before it, underscores for hyphens, in any case.
        known: The names that there are.

    Example:
        >>> [nearest(name, ["batch-size", "model", "C"]) for name in ("--batch_size", "--arch", "c", "--nothing")]
        ['batch-size', 'model', 'C', None]
    """
    plain = name.strip().lstrip("-").replace("_", "-").lower()
    by_case = {one.lower(): one for one in known}
    if plain in by_case:
        return by_case[plain]
    if HABITS.get(plain) in known:
        return HABITS[plain]
    longer = sorted((one for one in by_case if one.startswith(plain) and len(plain) > 2), key=len)
    if longer:
        return by_case[longer[0]]
    spelt = {**{one.replace("-", ""): one for one in by_case}, **{one: one for one in by_case}}
    close = difflib.get_close_matches(plain.replace("-", ""), spelt, n=1, cutoff=0.7)
    close = close or difflib.get_close_matches(plain, spelt, n=1, cutoff=0.7)
    if not close:  # a habit that is misspelt itself
        habits = [habit for habit, meant in HABITS.items() if meant in known and len(habit) > 3]
        habit = difflib.get_close_matches(plain, habits, n=1, cutoff=0.8)
        return HABITS[habit[0]] if habit else None
    return by_case[spelt[close[0]]]
