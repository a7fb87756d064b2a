"""Exported models: run by other programs, equal to the model, and absent where they are not."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from topkloss.app.errors import InputError
from topkloss.app.tasks.images import export as module
from topkloss.app.tasks.images.export import TOLERANCE, export
from topkloss.app.tasks.images.run import Run, load_run


@pytest.fixture(scope="module")
def run(trained: Path) -> Run:
    return load_run(trained, device="cpu")


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both files and nothing else."""
    folder = tmp_path_factory.mktemp("exported")
    for suffix in ("onnx", "pt2"):
        result = export(run, folder / f"model.{suffix}")
        assert result.path == folder / f"model.{suffix}"
        assert 0 <= result.difference <= result.limit
        assert result.limit >= TOLERANCE
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.pt2"}
    return folder


def eager(run: Run, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = run.model(images)
    return logits


@pytest.mark.parametrize("images", [1, 2, 5, 17])
def test_onnxruntime_gives_the_logits(run: Run, exported: Path, images: int) -> None:
    batch = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(images))
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": batch.numpy()})
    np.testing.assert_allclose(logits, eager(run, batch).numpy(), atol=1e-5)


@pytest.mark.parametrize("images", [1, 2, 5, 17])
def test_torch_export_gives_the_logits(run: Run, exported: Path, images: int) -> None:
    batch = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(images))
    torch.testing.assert_close(
        torch.export.load(exported / "model.pt2").module()(batch), eager(run, batch), atol=1e-5, rtol=0
    )


EXPECTED = {"classes": ["2", "10", "blank"], "image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def test_what_a_user_needs_goes_with_it(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    in_onnx = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    extra = {"metadata.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=extra)
    for metadata in (in_onnx, json.loads(extra["metadata.json"])):
        assert {name: metadata[name] for name in EXPECTED} == EXPECTED
    assert [(put.name, put.shape) for put in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [(put.name, put.shape) for put in session.get_outputs()] == [("logits", ["batch", 3])]


def test_the_onnx_file_is_whole_and_says_nothing_of_this_machine(exported: Path) -> None:
    onnx.checker.check_model(exported / "model.onnx", full_check=True)
    assert b".py" not in (exported / "model.onnx").read_bytes()
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        assert not any(b".py\\" in archive.read(name) for name in archive.namelist() if name.endswith(".json"))


# Refused: nothing is written, and what was there stays


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_that_answers_otherwise_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """A model whose files were made in training mode, say."""
    out = tmp_path / f"model.{suffix}"
    out.write_text("yesterday")
    open_ = getattr(module, f"_open_{suffix}")

    def otherwise(path: Path) -> Any:
        right = open_(path)
        return lambda batch: right(batch) + 3 * TOLERANCE

    monkeypatch.setattr(module, f"_open_{suffix}", otherwise)
    with pytest.raises(InputError, match=r"must give the logits of the model within 1\.\de-04; got a difference of 3"):
        export(run, out)
    assert out.read_text() == "yesterday"
    assert list(tmp_path.iterdir()) == [out]


class Odd(nn.Module):
    """What an exporter cannot follow: the way through it depends on the numbers, or on how many images there are."""

    def __init__(self, *, by: str) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.by = by

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)))
        if (self.by == "values" and float(logits.sum()) > 0) or (self.by == "images" and len(images) == 2):
            return -logits
        return logits


@pytest.mark.parametrize("by", ["values", "images"])
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_model_that_cannot_be_exported_is_said(run: Run, tmp_path: Path, by: str, suffix: str) -> None:
    with pytest.raises(InputError) as caught:
        export(replace(run, model=Odd(by=by)), tmp_path / f"model.{suffix}")
    assert str(caught.value).startswith("`--out` must be a format that test_convnext can be exported to; got ")
    assert str(caught.value).endswith(f"Try one that ends in .{'pt2' if suffix == 'onnx' else 'onnx'}.")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("model.pt", r"^`--out` must end in \.onnx or \.pt2; got .*model\.pt\. Pass .*model\.onnx\.$"),
        ("model", r"^`--out` must end in \.onnx or \.pt2; got .*model\. Pass .*model\.onnx\.$"),
        ("nowhere/model.onnx", r"^`--out` must lie in a folder; got .*, and there is no .*nowhere\. Make it first\.$"),
    ],
)
def test_where_it_cannot_go_is_said_before_the_work(run: Run, tmp_path: Path, path: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        export(run, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_or_training_mode_of_the_callers_is_left_alone(run: Run, tmp_path: Path) -> None:
    run.model.train()
    try:
        export(run, tmp_path / "model.pt2")
        assert run.model.training
    finally:
        run.model.eval()
