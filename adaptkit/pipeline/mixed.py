"""A target that turned out to be several domains: what becomes of each, and of all together."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from adaptkit.checkpoint import Checkpoint, checkpoint_files, suffix_of
from adaptkit.data import ImageLoader
from adaptkit.domains import RoutedModel, adapt_domains
from adaptkit.estimation import Statistics
from adaptkit.guard import Decision
from adaptkit.norms import norm_layers, read
from adaptkit.pipeline import guarding
from adaptkit.pipeline.common import Progress, record
from adaptkit.pipeline.methods import Adapted
from adaptkit.report.cells import csv
from adaptkit.transform import Transform

MOST = 8  # domains that are told apart

One = Callable[[ImageLoader], tuple[Decision | None, Adapted]]


@dataclass(frozen=True)
class Domain:
    """One domain of a target.

    Args:
        name: "domain 1" and so on, from the one most like the source.
        images: of it, as paths in the target's folder.
        decision: the guard's on it, where it was asked.
        statistics: what the model is to store for it.
    """

    name: str
    images: tuple[str, ...]
    decision: Decision | None
    statistics: Statistics


@dataclass(frozen=True)
class Mixed:
    """Several domains and the model that gives each image its own's statistics."""

    model: RoutedModel
    domains: tuple[Domain, ...]


def by_domain(
    model: nn.Module,
    to_adapt: ImageLoader,
    adapt_one: One,
    progress: Progress | None,
) -> tuple[Decision | None, Adapted] | Mixed:
    """Adapt to each domain that there is by itself; where there is one, as without this.

    Args:
        model: with its source statistics, left as it is.
        to_adapt: the target's images.
        adapt_one: adapts a copy of the model to some of them.
        progress: called as ``progress(stage, done, total)``.
    """
    found: list[tuple[Decision | None, Adapted]] = []

    def one(part: Iterable[Any]) -> Statistics:
        assert isinstance(part, ImageLoader)  # noqa: S101  parts of one are of its kind
        decision, done = adapt_one(part)
        found.append((decision, done))
        assert done.seen is not None  # noqa: S101  as AdaBN always has
        return done.applied or as_stored(model, done.seen)

    domains = adapt_domains(model, to_adapt, estimate_one=one, progress=progress)
    if len(found) == 1:
        return found[0]
    paths = [path.as_posix() for path in to_adapt.paths()]
    parts = zip(domains.statistics.items(), found, strict=True)
    return Mixed(
        RoutedModel(copy.deepcopy(model), domains.router, domains.statistics),
        tuple(
            Domain(name, tuple(paths[i] for i in domains.members[name]), decision, statistics)
            for (name, statistics), (decision, _) in parts
        ),
    )


def as_stored(model: nn.Module, seen: Statistics) -> Statistics:
    """Return what a model stores in the layers that some statistics are of."""
    stored = {name: read(layer) for name, layer in norm_layers(model).items()}
    return seen.corrected(lambda name, _: (stored[name].mean, stored[name].variance))


@dataclass(frozen=True)
class Places:
    """Where the files of a target of several domains go, beside the one that was asked for."""

    checkpoint: Path

    @property
    def _stem(self) -> str:
        return self.checkpoint.name.removesuffix(suffix_of(self.checkpoint))

    def of(self, number: int) -> Path:
        """Return where a domain's own checkpoint or pack goes, the first being 1.

        >>> Places(Path("out/net-adapted.pt")).of(2)
        PosixPath('out/net-adapted-domain-2.pt')
        """
        end = suffix_of(self.checkpoint)
        return self.checkpoint.with_name(f"{self._stem}-domain-{number}{end}")

    @property
    def router(self) -> Path:
        """Return where what routes images, and all domains' statistics, go."""
        return self.checkpoint.with_name(f"{self._stem}-domains.safetensors")

    @property
    def images(self) -> Path:
        """Return where it is said which image is of which domain."""
        return self.checkpoint.with_name(f"{self._stem}-domains.csv")

    def all(self) -> list[Path]:
        """Return all that there can be."""
        return [*(self.of(number + 1) for number in range(MOST)), self.router, self.images]


def files(
    places: Places,
    found: Mixed,
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    stats_only: bool,
    seed: int,
    transform: Transform | None,
) -> dict[Path, bytes]:
    """Return what is written: a file a domain, the router, and which image is of which."""
    written: dict[Path, bytes] = {}
    for number, domain in enumerate(found.domains, 1):
        path = places.of(number)
        choice = None if domain.decision is None else domain.decision.choice
        if stats_only:
            written[path] = domain.statistics.to_bytes(base=checkpoint.fingerprint())
            continue
        said = record(checkpoint, domain.statistics, seed, guard=choice) | {"domain": domain.name}
        written |= checkpoint_files(
            path,
            domain.statistics.apply(copy.deepcopy(model)),
            like=checkpoint,
            adapted=said,
            transform=transform,
        )
    written[places.router] = found.model.to_bytes()
    rows = [(path, domain.name) for domain in found.domains for path in domain.images]
    written[places.images] = csv(pd.DataFrame(rows, columns=["image", "domain"])).encode()
    return written


def as_fields(found: Mixed, mode: str, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return what a report says of the domains."""
    return [
        {
            "name": domain.name,
            "images": len(domain.images),
            "guard": domain.decision and guarding.as_fields(domain.decision, mode, classes),
        }
        for domain in found.domains
    ]
