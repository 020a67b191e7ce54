"""The public way to statistics: choose the samples, run them in lockstep."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, inputs_of, take, to_device
from adaptkit.device import resolve_device
from adaptkit.errors import DataError, EstimationError
from adaptkit.estimation.lockstep import lockstep
from adaptkit.estimation.memory import allowed
from adaptkit.estimation.probe import Probe, probe
from adaptkit.estimation.sampling import MICRO_BATCH, draw, finite, regroup
from adaptkit.estimation.statistics import Statistics

Progress = Callable[[str, int, int | None], None]


def estimate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    samples: int | Literal["all"] = 1024,
    memory: int | None = None,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    on_bad: Literal["skip", "raise"] = "skip",
    seed: int = 0,
    progress: Progress | None = None,
) -> Statistics:
    """Estimate a model's normalisation statistics on unlabelled target data, exactly.

    For each layer k that stores statistics, over all n values of a channel in the target sample,

        mean = Σx / n        variance = Σ(x − mean)² / (n − 1)

    where x is the input of layer k with every layer before k normalised by *its* target statistics,
    as inference with the adapted model will do it. The result does not depend on the loader's batch
    size or order. All else is in eval mode; the model is left as it was, also after an error.

    Args:
        model: with BatchNorm layers or others that store data-set statistics.
        loader: yields tensors, (tensor, label) pairs or dicts with an image; labels are not read.
            A DataLoader over a data set that can be indexed is read in an order of our own.
        samples: how many samples to use at most. Where the data set can be indexed they are drawn
            at random from `seed`; of any other iterable they are the first ones. "all" takes all.
        memory: bytes that waiting activations may take; by default half of what is free. If they
            would take more, fewer samples are used, and the result says so (`limited`).
        device: where to compute; by default where the model is.
        forward: called as ``forward(model, batch)`` instead of ``model(inputs)``, for batches of
            any other form.
        on_bad: leave out ("skip") a sample that holds NaN or an infinity, or "raise".
        seed: decides which samples are drawn.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        Statistics, float64.

    Raises:
        EstimationError: no layer stores statistics, there is no data, a layer sees one value a
            channel only or values that are not finite, or batches pass different layers.
        DataError: a batch is of a form that only `forward` could handle.

    Source: AdaBN, Li et al. 2016, arXiv 1603.04779.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2))
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    >>> statistics = estimate(net, [x[:1], x[1:]])
    >>> statistics["0"].mean.tolist(), statistics["0"].variance().tolist()
    ([2.0, 2.0], [4.0, 3.0])
    """
    wanted = _checked(samples, on_bad)
    model = norms.unwrap(model)
    layers = norms.norm_layers(model)
    if not layers:
        raise EstimationError(
            f"the model has no layer with data-set statistics to adapt: "
            f"{norms.why_nothing_to_adapt(model)}"
        )
    where = device_of(model) if device is None else resolve_device(device)
    if where != device_of(model):
        model = copy.deepcopy(model).to(where)
        layers = norms.norm_layers(model)
    for layer in layers.values():
        norms.read(layer)

    chosen = draw(loader, wanted, seed)
    total = chosen.available if wanted is None else min(wanted, chosen.available or wanted)
    dropped: list[int] = []

    def pieces() -> Iterator[Any]:
        for batch in finite(chosen.batches, on_bad, dropped.append):
            yield to_device(inputs_of(batch) if forward is None else batch, where)

    with norms.evaluating(model):
        first, rest = _first_of(pieces(), lambda: sum(dropped))
        few = first if forward else first[:2]
        seen = probe(model, layers, few, forward or call)
        limit = _most_samples(seen, few, allowed(memory, where))
        batches, count, limited = [], 0, False
        for piece in itertools.chain([first], rest):
            if limited := count + _size(piece) > limit:
                piece = take(piece, torch.arange(limit - count))
            count += _size(piece)
            batches.append(piece)
            if progress:
                progress("reading", count, total)
            if limited:
                break
        found = lockstep(
            model,
            layers,
            regroup(batches) if forward is None else batches,
            forward or call,
            # A layer that the probe did not pass may still come for other samples.
            visits=len(seen.visits) if set(seen.visits) == set(layers) else None,
            progress=progress and (lambda done: progress("estimating", done, len(layers))),
        )
    if not found:
        raise EstimationError(
            "no sample passed a norm layer with statistics: does forward= use it?"
        )
    return Statistics(
        moments=found,
        samples=count,
        available=chosen.available,
        random=chosen.random,
        limited=limited,
        dropped=sum(dropped),
        unvisited=tuple(name for name in layers if name not in found),
    )


def _first_of(batches: Iterator[Any], dropped: Callable[[], int]) -> tuple[Any, Iterator[Any]]:
    for first in batches:
        return first, batches
    raise EstimationError(
        f"there is no data to estimate from: {dropped()} samples were not finite"
        if dropped()
        else "there is no data to estimate from: the loader is empty, or a generator that has been "
        "used up"
    )


def _most_samples(seen: Probe, batch: Any, memory: int) -> int:
    """Return how many samples can wait at the widest place of a model while one batch runs."""
    size = _size(batch)
    inputs = sum(t.nbytes for t in tree_leaves(batch) if isinstance(t, Tensor))
    each = max(1, (seen.waiting + inputs) // size)
    spare = memory - (seen.running - seen.waiting) * MICRO_BATCH // size
    return max(spare // each, 2 * size)


def _checked(samples: int | str, on_bad: str) -> int | None:
    if samples != "all" and (not isinstance(samples, int) or samples < 1):
        raise EstimationError(f"Expected samples to be 1 or more, or 'all', got {samples!r}")
    if on_bad not in ("skip", "raise"):
        raise EstimationError(f"Expected on_bad to be 'skip' or 'raise', got {on_bad!r}")
    return None if isinstance(samples, str) else samples


def _size(batch: Any) -> int:
    """Count the samples in a batch; 1 for one of a form that only `forward=` knows."""
    try:
        return len(inputs_of(batch))
    except DataError:
        return 1
