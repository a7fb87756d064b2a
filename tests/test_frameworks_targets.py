"""Targets as other people's packages hand them over, by the packages themselves, in the line that their users write."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import AverageTopKCrossEntropyLoss, AverageTopKLoss, RegionLoss
from topkloss.losses import dice_loss


def test_timms_mixup() -> None:
    mixup_of = pytest.importorskip("timm.data.mixup").Mixup
    classification_task = pytest.importorskip("timm.task").ClassificationTask
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
    mixed, targets = mixup_of(mixup_alpha=1.0, cutmix_alpha=1.0, num_classes=5, label_smoothing=0.1)(images, labels)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
    loss = classification_task(model, criterion=criterion)(mixed, targets)["loss"]
    losses = F.cross_entropy(model(mixed), targets, reduction="none")
    hardest = (losses + torch.xlogy(targets, targets).sum(dim=1)).topk(4)[1]
    torch.testing.assert_close(loss, losses[hardest].mean())
    whole = AverageTopKCrossEntropyLoss(fraction=1)
    torch.testing.assert_close(whole(model(mixed), targets), nn.CrossEntropyLoss()(model(mixed), targets))


@pytest.mark.filterwarnings("ignore")  # that importing it gives
@pytest.mark.parametrize("one_hot", [False, True])
def test_monais_labels_have_a_channel(one_hot: bool) -> None:
    transforms = pytest.importorskip("monai.transforms")
    networks = pytest.importorskip("monai.networks")
    image = np.arange(16, dtype=np.float32).reshape(4, 4) % 3
    labels = torch.stack([transforms.EnsureChannelFirst(channel_dim="no_channel")(image) for _ in range(2)])
    assert labels.shape == (2, 1, 4, 4)
    assert labels.is_floating_point()
    outputs = torch.randn(2, 3, 4, 4)
    targets = networks.one_hot(labels, 3) if one_hot else labels
    expected = F.cross_entropy(outputs, torch.as_tensor(labels)[:, 0].long())
    torch.testing.assert_close(AverageTopKCrossEntropyLoss(fraction=1)(outputs, targets).as_subclass(Tensor), expected)
    dice = AverageTopKLoss(RegionLoss(dice_loss), fraction=1)
    plain = dice(outputs, torch.as_tensor(labels)[:, 0].long())
    torch.testing.assert_close(dice(outputs, targets).as_subclass(Tensor), plain)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_skorch_predicts_probabilities() -> None:
    skorch = pytest.importorskip("skorch")
    base = pytest.importorskip("sklearn.base")
    torch.manual_seed(0)
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    labels = features[:, :3].argmax(axis=1).astype(np.int64)
    net = skorch.NeuralNetClassifier(
        nn.Linear,
        module__in_features=4,
        module__out_features=3,
        criterion=AverageTopKCrossEntropyLoss,
        criterion__fraction=0.5,
        max_epochs=20,
        lr=0.5,
        verbose=0,
        train_split=None,
    )
    fitted = base.clone(net).fit(features, labels)
    chances = fitted.predict_proba(features)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
    with torch.no_grad():
        expected = fitted.module_(torch.from_numpy(features)).softmax(dim=1)
    np.testing.assert_allclose(chances, expected, rtol=1e-6)
    assert (fitted.predict(features) == labels).mean() > 0.9


KERAS = """
import keras, numpy as np, torch
from torch.nn import functional as F
from topkloss import AverageTopKCrossEntropyLoss
criterion = AverageTopKCrossEntropyLoss(fraction=1)
seen = []
def loss(targets, outputs):
    value = criterion(outputs, targets)
    if targets.ndim == 1:
        assert torch.equal(value, criterion(outputs, targets.flatten().long()))
    expected = F.cross_entropy(outputs, {own})
    seen.append((tuple(targets.shape), targets.dtype, value.item(), expected.item()))
    return value
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
model.compile(optimizer="sgd", loss=loss)
features, labels = np.random.rand(16, 4).astype("float32"), np.arange(16) % 3
model.fit(features, {given}, batch_size=16, epochs=2, verbose=0)
(shape, dtype, value, expected), *_ = seen
assert shape == {shape} and dtype == torch.float32, (shape, dtype)
assert abs(value - expected) < 1e-6, (value, expected)
"""


@pytest.mark.parametrize(
    ("given", "shape", "own"),
    [
        ("labels.astype('float32')", (16,), "targets.long()"),
        ("np.eye(3, dtype='float32')[labels]", (16, 3), "targets"),
    ],
    ids=["index", "one-hot"],
)
def test_keras_hands_over_floats(given: str, shape: Any, own: str) -> None:
    pytest.importorskip("optree")  # of Keras, which is not imported here: it reads its backend once
    program = KERAS.format(given=given, shape=shape, own=own)
    environment = os.environ | {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
