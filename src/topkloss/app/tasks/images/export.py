"""The model of a run as a file that other programs run: ONNX or torch.export, compared with the model first."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import topkloss
from topkloss.app.errors import InputError
from topkloss.app.runs.files import check_out, written
from topkloss.app.tasks.images.run import Run

__all__ = ["TOLERANCE", "Exported", "export"]

# The same sums in another order: float32 rounds each step by 6e-8 of its size, and some hundred such steps follow one
# another in a deep network. Another layer, axis or constant would differ by far more.
TOLERANCE = 1e-4

METADATA = "metadata.json"


@dataclass(frozen=True)
class Exported:
    """What the comparison gave.

    Attributes:
        path: Of the file.
        difference: The largest between a logit of the file and one of the model.
        limit: What it may be: `TOLERANCE`, or as much of the largest logit where that is beyond 1.
        images: Of the batch they were compared on.
    """

    path: Path
    difference: float
    limit: float
    images: int


def export(run: Run, out: str | Path) -> Exported:
    """Writes the model: from prepared images (N, 3, size, size), any N, to logits (N, C).

    Names of the classes, image size, mean, std and, where there is one, the range of pixels go with it: in ONNX as
    metadata, each as JSON; in torch.export as the extra file ``metadata.json``.

    Args:
        run: From `topkloss.app.tasks.images.run.load_run`.
        out: Ends in ``.onnx`` or ``.pt2``. It appears, or is replaced, when the file, read back, gives the model's
            logits on random batches of other sizes than it was made with.

    Raises:
        InputError: If the model cannot be exported or the file answers otherwise; nothing is left then.
    """
    out = Path(out)
    check_out(out, (".onnx", ".pt2"))
    write, open_ = (_write_onnx, _open_onnx) if out.suffix == ".onnx" else (_write_pt2, _open_pt2)
    model = copy.deepcopy(run.model).cpu().eval()
    size = run.image_size
    metadata = {
        "classes": list(run.classes),
        "image_size": size,
        "mean": list(run.mean),
        "std": list(run.std),
        "topkloss": topkloss.__version__,
    }
    if run.config.pixel_range is not None:
        metadata["pixel_range"] = list(run.config.pixel_range)
    with written(out) as partial, torch.no_grad():
        try:
            write(model, torch.zeros(2, 3, size, size), metadata, partial)
            exported = _compared(model, open_(partial), size, out)
        except (InputError, ModuleNotFoundError, OSError):
            raise
        except Exception as error:  # the exporters have their own for each thing that they cannot do
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(
                f"`--out` must be a format that {run.config.model} can be exported to; got {out}: {reason}. "
                f"Try one that ends in {'.pt2' if out.suffix == '.onnx' else '.onnx'}."
            ) from error
        if not exported.difference <= exported.limit:
            raise InputError(
                f"{out} must give the logits of the model within {exported.limit:.1e}; got a difference of "
                f"{exported.difference:.1e}, so it was not written. "
                f"Try one that ends in {'.pt2' if out.suffix == '.onnx' else '.onnx'}."
            )
    return exported


def _compared(model: nn.Module, exported: Callable[[Tensor], Tensor], size: int, out: Path) -> Exported:
    """Compares the outputs on one image and on three: the file was made with two."""
    chance = torch.Generator().manual_seed(0)
    difference, largest = 0.0, 0.0
    for images in (1, 3):
        batch = torch.randn(images, 3, size, size, generator=chance)
        eager, answer = model(batch), exported(batch)
        if answer.shape != eager.shape:
            raise ValueError(f"logits of shape {tuple(answer.shape)} for {images} images")
        difference = max(difference, float((answer - eager).abs().max().nan_to_num(torch.inf)))
        largest = max(largest, float(eager.abs().max()))
    return Exported(out, difference, TOLERANCE * max(1.0, largest), images)


def _write_onnx(model: nn.Module, images: Tensor, metadata: dict[str, object], path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_module(package)  # whatever is missing is said before the work

    exported = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        dynamic_shapes=_shapes(),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program = cast(torch.onnx.ONNXProgram, exported)  # dynamo makes one
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes the lines of code, with the paths of this machine
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def _write_pt2(model: nn.Module, images: Tensor, metadata: dict[str, object], path: Path) -> None:
    program = torch.export.export(model, (images,), dynamic_shapes=_shapes())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of code, with the paths of this machine
    whole = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, whole, extra_files={METADATA: json.dumps(metadata)})
    path.write_bytes(whole.getbuffer())


def _open_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module


def _shapes() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch", min=1)},)
