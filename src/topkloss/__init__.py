"""The average top-k loss and its kin: exact, never NaN by itself, one line to adopt."""

from topkloss import (
    aggregate,
    compound,
    criterion,
    cross_entropy,
    distributed,
    elements,
    mining,
    monitor,
    schedule,
    selection,
    selective,
    soft,
)
from topkloss.aggregate import *  # noqa: F403
from topkloss.compound import *  # noqa: F403
from topkloss.criterion import *  # noqa: F403
from topkloss.cross_entropy import *  # noqa: F403
from topkloss.distributed import *  # noqa: F403
from topkloss.elements import *  # noqa: F403
from topkloss.mining import *  # noqa: F403
from topkloss.monitor import *  # noqa: F403
from topkloss.schedule import *  # noqa: F403
from topkloss.selection import *  # noqa: F403
from topkloss.selective import *  # noqa: F403
from topkloss.soft import *  # noqa: F403

__all__: list[str] = []
__all__ += aggregate.__all__
__all__ += soft.__all__
__all__ += criterion.__all__
__all__ += cross_entropy.__all__
__all__ += mining.__all__
__all__ += compound.__all__
__all__ += elements.__all__
__all__ += distributed.__all__
__all__ += selective.__all__
__all__ += schedule.__all__
__all__ += selection.__all__
__all__ += monitor.__all__
__version__ = "0.1.0"
