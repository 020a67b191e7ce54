"""Running a model over images and saying how good it is, for each kind of output."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, inputs_of
from adaptkit.data import ImageLoader
from adaptkit.dense import DenseEvaluation, evaluate_dense
from adaptkit.distributed import world
from adaptkit.estimation import Statistics
from adaptkit.evaluation import Evaluation, evaluate
from adaptkit.features import NoFeaturesError, Tap
from adaptkit.norms import norm_layers, read
from adaptkit.pipeline.opening import Head
from adaptkit.report import Report, compare
from adaptkit.report.charts import channel_chart, layer_chart, precision_chart
from adaptkit.report.layers import error_rows, layer_rows, target_of

Vectors = NDArray[np.float32]
Scores = Evaluation | DenseEvaluation | None  # None of a model whose output nothing can score
Seen = tuple[Scores, Vectors | None]


def score(
    model: nn.Module,
    images: ImageLoader,
    head: Head,
    *,
    forward: Forward | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Scores:
    """Evaluate a model on images as its kind of output wants it."""
    if head.kind == "classes":
        return evaluate(model, images, forward=forward, progress=progress)
    if head.kind == "pixels":
        return evaluate_dense(model, images, forward=forward, progress=progress)
    return None


def score_and_see(
    model: nn.Module,
    images: ImageLoader,
    head: Head,
    *,
    most: int,
    seed: int,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Seen:
    """Evaluate a model, and in the same pass take the pooled features of `most` images at random.

    The same images for each model and loader of as many images; None where the model has no layer
    to take features at.
    """
    together = world()
    n = len(images.dataset)  # type: ignore[arg-type]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    chosen = np.zeros(n, dtype=bool)
    chosen[order[:most].numpy()] = True
    paths = images.paths()
    mine = (  # as `evaluate` deals them out; what cannot be read is known once it should have come
        place
        for place in range(together.rank, n, together.size)
        if paths[place].as_posix() not in images.skipped
    )
    found: list[NDArray[np.float32]] = []
    places: list[NDArray[np.intp]] = []
    seen = True

    def forward(net: nn.Module, batch: Any) -> Any:
        nonlocal seen
        output = call(net, batch)
        try:
            vectors = tap.take(len(inputs_of(batch)))
        except NoFeaturesError:
            seen = False
            return output
        here = np.fromiter(islice(mine, len(vectors)), dtype=np.intp)
        found.append(vectors[: len(here)][chosen[here]])
        places.append(here[chosen[here]])
        return output

    try:
        with Tap(model) as tap:
            _check_one_image(model, tap, images)
            scores = score(model, images, head, forward=forward, progress=progress)
    except NoFeaturesError:
        return score(model, images, head, progress=progress), None
    every = together.gather((seen, found, places))
    parts = [part for _, vectors, __ in every for part in vectors]
    if not all(known for known, _, __ in every) or not parts:
        return scores, None
    ordered = np.argsort(np.concatenate([part for _, __, some in every for part in some]))
    return scores, np.concatenate(parts)[ordered]


def of_the_same(
    seen: Mapping[str, Seen], again: Mapping[str, Callable[[], Seen]]
) -> dict[str, Seen]:
    """Score again where an image vanished between passes, until all are of the same images.

    Args:
        seen: what each pass saw, by name.
        again: the passes.
    """
    found = dict(seen)
    while True:
        counts = {name: len(scores) for name, (scores, _) in found.items() if scores is not None}
        more = [name for name, count in counts.items() if count > min(counts.values())]
        if not more:
            return found
        found |= {name: again[name]() for name in more}


def _check_one_image(model: nn.Module, tap: Tap, images: ImageLoader) -> None:
    """Pass a blank image: a layer whose rows are time steps could have as many as a batch."""
    blank = torch.zeros(1, *images.shape, device=device_of(model))
    with norms.evaluating(model), torch.no_grad():
        model(blank)
    tap.take(1)


def reported(
    before: Scores,
    after: Scores,
    models: tuple[nn.Module, nn.Module],
    *,
    statistics: Statistics | None,
    classes: Sequence[str] | None,
    seed: int,
    details: Mapping[str, Any],
) -> Report:
    """Compare the scores of two models, or if there are none, what their norm layers store.

    `statistics` are the target's, None where adapting leaves the layers as they are.
    """
    if before is not None and after is not None:
        return compare(
            before, after, statistics=statistics, classes=classes, seed=seed, details=details
        )
    if statistics is None:
        return Report((), dict(details))
    own, new = ({n: read(m) for n, m in norm_layers(x).items()} for x in models)
    target = target_of(new, statistics)
    rows = [*layer_rows(own, new, target), *error_rows(statistics)]
    charts = layer_chart(rows), channel_chart(own, target), precision_chart(statistics)
    return Report(tuple(rows), dict(details), tuple(c for c in charts if c is not None))


def of_classes(scores: Scores) -> Evaluation | None:
    """Return the evaluation of a classifier; None of anything else."""
    return scores if isinstance(scores, Evaluation) else None
