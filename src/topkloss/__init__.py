"""The average top-k loss and its kin: exact, never NaN by itself, one line to adopt."""

from topkloss.aggregates import average as _average
from topkloss.aggregates import cross_entropy as _average_cross_entropy
from topkloss.aggregates import dual as _average_dual
from topkloss.aggregates.average import *  # noqa: F403
from topkloss.aggregates.cross_entropy import *  # noqa: F403
from topkloss.aggregates.dual import *  # noqa: F403
from topkloss.base import processes as _processes
from topkloss.base.processes import *  # noqa: F403
from topkloss.criteria import average as _criteria_average
from topkloss.criteria import compound as _compound
from topkloss.criteria import cross_entropy as _cross_entropy
from topkloss.criteria import dual as _dual
from topkloss.criteria import mining as _mining
from topkloss.criteria.average import *  # noqa: F403
from topkloss.criteria.compound import *  # noqa: F403
from topkloss.criteria.cross_entropy import *  # noqa: F403
from topkloss.criteria.dual import *  # noqa: F403
from topkloss.criteria.mining import *  # noqa: F403
from topkloss.loop import monitor as _monitor
from topkloss.loop import schedule as _schedule
from topkloss.loop import selective as _selective
from topkloss.loop.monitor import *  # noqa: F403
from topkloss.loop.schedule import *  # noqa: F403
from topkloss.loop.selective import *  # noqa: F403
from topkloss.losses import elements as _elements
from topkloss.losses.elements import *  # noqa: F403
from topkloss.ranking import selection as _selection
from topkloss.ranking.selection import *  # noqa: F403

__all__: list[str] = []
__all__ += _average.__all__
__all__ += _average_dual.__all__
__all__ += _average_cross_entropy.__all__
__all__ += _criteria_average.__all__
__all__ += _dual.__all__
__all__ += _cross_entropy.__all__
__all__ += _mining.__all__
__all__ += _compound.__all__
__all__ += _elements.__all__
__all__ += _processes.__all__
__all__ += _selective.__all__
__all__ += _schedule.__all__
__all__ += _selection.__all__
__all__ += _monitor.__all__
__version__ = "0.1.0"
