"""Individual losses: one number for each element or each region, never reduced."""

from topkloss.losses import pointwise, regions
from topkloss.losses.pointwise import *  # noqa: F403
from topkloss.losses.regions import *  # noqa: F403

__all__: list[str] = []
__all__ += pointwise.__all__
__all__ += regions.__all__
