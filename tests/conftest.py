"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("quick", settings.get_profile("default"), max_examples=4)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=250)
settings.load_profile(os.environ.get("TOPKLOSS_HYPOTHESIS", "default"))
