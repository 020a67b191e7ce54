"""All domains taken as one target: what adapting once comes to, beside each by itself."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from adaptkit.distributed import alone
from adaptkit.errors import OutputError
from adaptkit.estimation import Statistics
from adaptkit.pipeline.domain_results import Results
from adaptkit.pipeline.domain_targets import DomainTargets, Listed
from adaptkit.pipeline.holdout import split
from adaptkit.pipeline.one_domain import DomainAdapter, Once, reason_of
from adaptkit.report.many import FAILED, POOLED, DomainRow


@dataclass(frozen=True)
class Pooled:
    """What came of taking all domains as one target.

    Args:
        row: as it was written.
        once: what all domains are scored with beside their own; None if it failed.
        names: of the domains whose samples it could be made from.
    """

    row: DomainRow
    once: Once | None
    names: tuple[str, ...]


def results_of(results: Results) -> Results:
    """Return where the pooled result goes: a folder in that of the domains.

    Files would not do: each name that ends as a pack's does is that of a domain's.
    """
    return replace(results, folder=results.folder / POOLED)


def adapt_once(
    targets: DomainTargets,
    listed: Mapping[str, Listed],
    adapter: DomainAdapter,
    results: Results,
    base: str,
    force: bool,
) -> Pooled | None:
    """Write the result of all domains as one, unless it is there, made from the same.

    The statistics are of as many samples as one domain's may be of, drawn from all. Those that are
    held out in a domain are not among them.

    Args:
        targets: the domains.
        listed: those that could be listed, with what is known of each.
        adapter: see `DomainAdapter`.
        results: of the pooled result (see `results_of`).
        base: the checkpoint's fingerprint.
        force: make it anew in any case.

    Returns:
        None where there are fewer than two domains.

    Raises:
        OutputError: the system refused.
    """
    parts = {
        name: split(known.count, adapter.holdout, adapter.options["seed"])[0]
        for name, known in sorted(listed.items())
        if known.count > 1 or not adapter.holdout
    }
    counting = {name: _weighing(places, listed[name]) for name, places in parts.items()}
    to_adapt = {name: places for name, places in counting.items() if places}
    if len(to_adapt) < 2:
        return None
    state = _state({name: listed[name] for name in to_adapt})
    if force or not results.holds(POOLED, state):
        row, pack = _made(targets, to_adapt, adapter, base)
        row = replace(row, images=sum(listed[name].count for name in to_adapt))
        _make(results.folder)
        results.write(row, state, pack)
    row, names = results.row(POOLED), tuple(to_adapt)
    if row.status == FAILED:
        return Pooled(row, None, names)
    # As it was written, also where it has just been made: figures are then the same to the bit.
    path = results.pack(POOLED)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Pooled(row, Once(Statistics.load(path), row.status, sha256), names)


def _made(
    targets: DomainTargets,
    to_adapt: Mapping[str, Sequence[int]],
    adapter: DomainAdapter,
    base: str,
) -> tuple[DomainRow, bytes | None]:
    start = time.perf_counter()
    pack = None
    try:
        drawn = _drawn(to_adapt, adapter.most, adapter.options["seed"])
        with alone():
            row, statistics = adapter.adapt_once(POOLED, targets.pooled(drawn))
        pack = statistics.to_bytes(base=base)
        row = replace(row, pack=f"{POOLED}/{POOLED}.safetensors")
    except Exception as error:  # noqa: BLE001  models, images and disks fail in any way
        row = DomainRow(POOLED, FAILED, error=reason_of(error))
    return replace(row, kind=POOLED, seconds=round(time.perf_counter() - start, 3)), pack


def _weighing(places: Sequence[int], known: Listed) -> Sequence[int]:
    """Leave out the samples whose weight is 0."""
    left_out = known.weightless
    return [place for place in places if place not in left_out] if left_out else places


def _drawn(
    to_adapt: Mapping[str, Sequence[int]], most: int | None, seed: int
) -> dict[str, list[int]]:
    """Return at most so many of the places within domains, drawn from all."""
    ends = np.cumsum([len(places) for places in to_adapt.values()])
    order = torch.randperm(int(ends[-1]), generator=torch.Generator().manual_seed(seed))
    chosen = order[:most].sort().values.numpy()
    cuts = np.searchsorted(chosen, ends)
    found: dict[str, list[int]] = {}
    start = first = 0
    for (name, places), end, cut in zip(to_adapt.items(), ends, cuts, strict=True):
        if cut > first:
            found[name] = [places[i - start] for i in chosen[first:cut].tolist()]
        start, first = int(end), int(cut)
    return found


def _state(listed: Mapping[str, Listed]) -> str:
    known = sorted((name, domain.state, domain.count) for name, domain in listed.items())
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}") from None
