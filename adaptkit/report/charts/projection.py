"""Source and target in a plane: where the features of the images lie."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptkit.report.charts.chart import Chart, Floats, Panel, Series

POINTS = 500  # of each domain
_DEGENERATE = 1e-12  # of the features' variance, where there is nothing to see

Vectors = NDArray[np.float32] | NDArray[np.float64]


def projection_chart(
    before: Vectors, after: Vectors, source: Vectors | None = None, *, seed: int = 0
) -> Chart | None:
    """Return the first two principal components of features, before and after adapting.

    The components are those of the source's features, or without them of the target's before and
    after together, so that both views lie in one plane.

    Args:
        before: shape (n, D), of the target's images in the source model.
        after: shape (n, D), of the same images in the adapted model.
        source: shape (m, D), of the source's images in the source model.
        seed: of the solver.

    Returns:
        None for fewer than three images or features, or where they do not vary.
    """
    from sklearn.decomposition import PCA

    before, after = before[:POINTS], after[:POINTS]
    given = source is not None and len(source) > 2
    base = source[:POINTS] if given and source is not None else np.concatenate([before, after])
    every = np.concatenate([base, before, after])
    if min(len(before), *base.shape) < 3 or not np.isfinite(every).all():
        return None
    if base.astype(np.float64).var(0).sum() < _DEGENERATE:
        return None
    pca = PCA(2, svd_solver="randomized", random_state=seed).fit(base.astype(np.float64))
    explained = pca.explained_variance_ratio_
    flat = {"before": pca.transform(before), "after": pca.transform(after)}
    of_source = pca.transform(base) if given else None
    panels = []
    for role, points in flat.items():
        series = []
        if of_source is not None:
            series.append(_cloud("source", of_source, "source"))
        series.append(_cloud(f"target, {role}", points, role))
        panels.append(Panel(role, series, _axis(2, explained), _finding(points, of_source, role)))
    whole = np.concatenate([*flat.values(), *([] if of_source is None else [of_source])])
    whose = "the source's images" if given else "the target's images, before and after together"
    without = "" if given else " With --source-data the source's images are drawn as well."
    return Chart(
        name="projection",
        title="Where the images lie for the model",
        x=_axis(1, explained),
        panels=panels,
        caption=(
            f"The pooled features before the last layer, a point an image, on the first two "
            f"principal components (PCA) of {whose}. They show {100 * explained.sum():.0f}% of the "
            f"variance; what lies apart here is apart, what lies together need not be.{without}"
        ),
        table=_table(flat, of_source),
        limits=_limits(whole),
        choice="Show the target",
        first=1,
    )


def _cloud(name: str, points: Floats, role: str) -> Series:
    return Series(name, points[:, 0], points[:, 1], role)  # type: ignore[arg-type]


def _axis(number: int, explained: Floats) -> str:
    return f"component {number} ({100 * explained[number - 1]:.0f}% of the variance)"


def _finding(points: Floats, source: Floats | None, role: str) -> str:
    spread = np.sqrt(points.var(0).sum())
    if source is None:
        return f"{len(points):,} images with a spread of {spread:.3g} in this plane."
    apart = float(np.linalg.norm(points.mean(0) - source.mean(0)))
    unit = float(np.sqrt(source.var(0).sum())) or 1.0
    return f"The centres lie {apart / unit:.2f} of the source's spread apart, {role}."


def _table(flat: dict[str, Floats], source: Floats | None) -> pd.DataFrame:
    clouds = {f"target, {role}": points for role, points in flat.items()}
    if source is not None:
        clouds = {"source": source, **clouds}
    rows = [
        (name, len(p), *map(float, p.mean(0)), *map(float, p.std(0))) for name, p in clouds.items()
    ]
    columns = ["images of", "number", "centre 1", "centre 2", "spread 1", "spread 2"]
    return pd.DataFrame(rows, columns=columns)


def _limits(points: Floats) -> tuple[tuple[float, float], tuple[float, float]]:
    low, high = points.min(0), points.max(0)
    margin = 0.05 * np.maximum(high - low, 1e-9)
    low, high = low - margin, high + margin
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
