"""Settings that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile("default", max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
# For mutation testing, which asks whether a test fails, and never on what: nothing is shrunk.
ASKED = (Phase.explicit, Phase.generate)
settings.register_profile("asked", settings.get_profile("default"), phases=ASKED)
settings.register_profile("glance", settings.get_profile("asked"), max_examples=4)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=250)
settings.load_profile(os.environ.get("TOPKLOSS_HYPOTHESIS", "default"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, in the folder `run` beside its pictures, in `data`. To be read only: copy it to spoil it."""
    from tests.pictures import write_pictures  # here: the core's tests run without any extra
    from topkloss.app.tasks.images.fit import fit
    from topkloss.app.tasks.images.records import TrainConfig

    root = tmp_path_factory.mktemp("trained")
    (root / "data").mkdir()
    table = write_pictures(root / "data")
    fit(
        TrainConfig(csv=str(table), model="test_convnext", image_size=32, epochs=1, batch_size=9, out=str(root / "run"))
    )
    return root / "run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ids are the same in every process, or the tests cannot be shared between some."""
    places = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if places:
        raise pytest.UsageError(f"{places[0]} has the address of an object in its id; name it by `ids`")
