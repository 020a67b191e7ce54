"""matplotlib, which only plots need."""

from typing import TYPE_CHECKING

from adaptkit.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches; not one of pyplot's, which would keep it alive.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError(
            "plots need matplotlib, which is not installed: pip install adaptkit[plot]"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")
