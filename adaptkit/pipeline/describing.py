"""What a run of the main job says beside its figures: notes, charts, the JSON's details."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from adaptkit.checkpoint import Checkpoint
from adaptkit.data import ImageLoader, Place
from adaptkit.distributed import world
from adaptkit.estimation import Certificate, Statistics
from adaptkit.estimation.statistics import as_fields
from adaptkit.pipeline.common import Clock, versions
from adaptkit.pipeline.methods import Adapted
from adaptkit.pipeline.opening import Head, preparation
from adaptkit.pipeline.scoring import Scores, Vectors, of_classes
from adaptkit.report import Row
from adaptkit.report.charts import Chart, layer_chart, projection_chart

Features = tuple[Vectors | None, Vectors | None, Vectors | None]


def more_charts(rows: Sequence[Row], features: Features, seed: int) -> Iterator[Chart]:
    """Yield the charts that `compare` cannot know of: of the method's own rows, and of features."""
    source, before, after = features
    charts = [layer_chart(rows)]
    if before is not None and after is not None and len(before) == len(after):
        charts.append(projection_chart(before, after, source, seed=seed))
    yield from (chart for chart in charts if chart is not None)


def notes_of(loader: ImageLoader, statistics: Statistics | None) -> Iterator[str]:
    """Yield what has to be said in words of the samples, and of how they were drawn."""
    if loader.listing.note:
        yield loader.listing.note
    if loader.listing.domains and (count := len(set(loader.listing.domains))) > 1:
        yield f"{count:,} domains taken as one; --domains folder adapts to each."
    if statistics is None:
        return
    of = loader.listing.of
    if statistics.limited:
        yield (
            f"memory allowed {statistics.samples:,} {of} for the statistics; more need "
            f"--memory, or --mode stream."
        )
    if statistics.mode == "stream":
        yield "streamed statistics are an approximation."
    if statistics.unvisited:
        yield f"no {of[:-1]} passed {', '.join(statistics.unvisited)}, left as they were."


def details(
    line: str,
    arguments: dict[str, Any],
    checkpoint: Checkpoint,
    head: Head,
    where: torch.device,
    loader: ImageLoader,
    statistics: Statistics | None,
    done: Adapted,
    before: Scores,
    after: Scores,
    clock: Clock,
    certificate: Certificate | None,
    guard: dict[str, Any] | None,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Return what the JSON file says beside the rows."""
    first, second = of_classes(before), of_classes(after)
    return {
        "command": line,
        "versions": versions(),
        "arguments": {k: str(v) if isinstance(v, Place) else v for k, v in arguments.items()},
        "seed": arguments["seed"],
        "device": str(where),
        "processes": world().size,
        "method": arguments["method"],
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "arch": checkpoint.arch,
            "arch_kwargs": checkpoint.arch_kwargs,
            "adapted": checkpoint.adapted,
        },
        "layers": {
            "adapted": list(done.applied or ()),
            "unvisited": [] if statistics is None else list(statistics.unvisited),
        },
        "outputs": {"kind": head.kind, "classes": head.size},
        "transform": loader.transform and loader.transform.to_dict(),
        "transform_from": checkpoint.transform_from,
        "of": loader.listing.of,
        "prepared": preparation(checkpoint, loader.listing.shape),
        "transform_after": done.transform and done.transform.to_dict(),
        "samples": {
            "images": len(loader.listing),
            "labelled": first is not None and first.labels is not None,
            "evaluated": 0 if before is None else len(before),
            "estimated": statistics and statistics.samples,
        },
        "statistics": statistics and as_fields(statistics),
        "certificate": certificate
        and {
            "worst": certificate.worst,
            "mean": certificate.mean,
            "log_variance": certificate.log_variance,
        },
        "transductive": None
        if arguments["holdout"] or (done.applied is None and not more["input_fit"])
        else f"the {loader.listing.of} that were scored include those that were adapted to",
        "accuracy_interval": {
            "before": first and first.accuracy_interval,
            "after": second and second.accuracy_interval,
        },
        "skipped": dict(loader.skipped),
        "seconds": clock.seconds,
        "guard": guard,
        **more,
    }
