"""The public way to statistics: choose the samples, then run them, together or piece by piece."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptkit import heap, norms
from adaptkit.batches import Forward, call, device_of, inputs_of, to_device
from adaptkit.device import resolve_device
from adaptkit.distributed import ALONE, World, world
from adaptkit.distributed.sharded import copied
from adaptkit.errors import EstimationError, few
from adaptkit.estimation.agreement import agree, agree_on_buffers, neighbours, take_first
from adaptkit.estimation.lockstep import Settle, as_found, lockstep
from adaptkit.estimation.memory import allowed
from adaptkit.estimation.merging import Merging
from adaptkit.estimation.precision import Precision, autocast
from adaptkit.estimation.probe import Probe, probe
from adaptkit.estimation.resuming import Ledger, Resume
from adaptkit.estimation.sample import Sample, Weight, bytes_of, size_of, weights_of
from adaptkit.estimation.sampling import draw, finite
from adaptkit.estimation.statistics import Statistics
from adaptkit.loaders import weight_of
from adaptkit.moments import Moments

Progress = Callable[[str, int, int | None], None]

DEFAULT_SAMPLES = 1024
FIRST_SAMPLES = 128  # of a run with a tolerance; then twice as many, and so on
STREAM_CHUNK = 256  # samples that a streaming pass holds at a time, memory allowing
# Of a micro-batch: small enough that one operation's feature maps are a share of the memory, large
# enough to keep the kernels busy. 16 images of 224 px in a ResNet-50, 256 small ones.
MICRO_BATCH_BYTES = 128 * 2**20
MOST_IN_MICRO_BATCH = 256
# What the allocator takes beyond what is in use, and the kernels for themselves, so that the peak
# of resident memory keeps to `memory` (`python -m benchmarks memory`).
SLACK = 1.25
KERNELS_BYTES = 32 * 2**20


def estimate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mode: Literal["exact", "stream"] = "exact",
    samples: int | Literal["all"] | None = None,
    tolerance: float | None = None,
    memory: int | None = None,
    prior: float = 0,
    correction: Settle | None = None,
    layers: norms.Select = None,
    weight: Weight | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    forward: Forward | None = None,
    on_bad: Literal["skip", "raise"] = "skip",
    seed: int = 0,
    resume: str | Path | Resume | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Estimate a model's normalisation statistics on unlabelled target data, exactly.

    For each layer k that stores statistics, over all n values of a channel in the target sample,

        mean = Σx / n        variance = Σ(x − mean)² / (n − 1)

    where x is the input of layer k with every layer before k normalised by *its* target statistics,
    as inference with the adapted model will do it. The result does not depend on the loader's batch
    size or order. All else is in eval mode; the model is left as it was, also after an error.
    InstanceNorm layers with tracked statistics get the means of their instances' means and unbiased
    variances.

    Args:
        model: with BatchNorm layers or others that store data-set statistics.
        loader: yields tensors, (tensor, label) pairs or dicts with an image; labels are not read.
            A DataLoader over a data set that can be indexed is read in an order of our own. Of
            several processes each reads its part of a data set that all have, of which their
            samplers have to draw the same (one that is weighted: as in the first process); of
            anything else each process's loader is its own part.
        mode: "exact" holds the whole sample's activations at one layer at a time; "stream" holds
            256 samples, each such chunk normalised by its own statistics, and pools the moments:
            an approximation, for more samples than memory holds.
        samples: how many samples to use at most, by default 1,024. Where the data set can be
            indexed they are drawn at random from `seed`; of any other iterable they are the first
            ones. "all" takes all, and is the default with `tolerance`.
        tolerance: draw 128, 256, 512, … samples until every layer's standard error
            (`Statistics.errors`) is within it, or the samples end. 0.02 is 2% of a standard
            deviation. What was not needed is not read.
        memory: bytes that waiting activations may take; by default half of what is free. If they
            would take more, "exact" uses fewer samples, and the result says so (`limited`).
        prior: with N above 0, every layer normalises by what `Statistics.blend` of prior N makes of
            its statistics, so that the next ones' are of what an adapted model with that prior
            sees. What is returned is not blended. "stream" blends nothing, as a chunk is not all.
        correction: gives the mean and variance that a layer normalises by, of its name and moments
            (see `adaptkit.guard.ClassMix`); what is returned is not corrected (see
            `Statistics.corrected`). A prior blends what it gives. Not together with "stream".
        layers: names or globs of the layers to estimate, or a predicate of name and layer; the
            others keep their statistics. By default all.
        weight: called with each batch (on the CPU), gives its samples' weights, shape (N,), of
            which only the ratios matter. By default the loader's own, if it has any, as one of
            `adaptkit.data.open`; of these samples that weigh 0 are not drawn.
        device: where to compute; by default where the model is.
        precision: of the forward passes, "fp32", "bf16" or "fp16"; "auto" is float32, or what an
            autocast around the call says. Sums are always float64.
        forward: called as ``forward(model, batch)`` instead of ``model(inputs)``, for batches of
            any other form.
        on_bad: leave out ("skip") a sample that holds NaN or an infinity, or "raise".
        seed: decides which samples are drawn.
        resume: of mode "stream": a file that every ten seconds or so, and when the pass is stopped,
            takes down what was found, and is removed when it has ended. If it is there, the pass
            goes on from it, and ends with the statistics, to the last bit, of one that was not
            stopped, if samples are the same whenever they are read. `memory` counts where a pass
            begins. In a job of several processes each has its own (see `Resume`).
        progress: called as ``progress(stage, done, total)``.

    Returns:
        Statistics, float64.

    Raises:
        EstimationError: no layer stores statistics, there is no data, a layer sees one value a
            channel only or values that are not finite, batches pass different layers, or an
            argument is out of its range.
        DataError: a batch is of a form that only `forward` could handle.
        ModelError: as `adaptkit.adapt`.
        OutputError: the file to resume from cannot be used, or was made from something else: it
            names what differs.

    Source: AdaBN, Li et al. 2016, arXiv 1603.04779.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2))
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    >>> statistics = estimate(net, [x[:1], x[1:]])
    >>> statistics["0"].mean.tolist(), statistics["0"].variance().tolist()
    ([2.0, 2.0], [4.0, 3.0])
    """
    together = world()
    weight = weight or weight_of(loader)
    with together.united():
        wanted = checked(
            mode=mode, samples=samples, tolerance=tolerance, on_bad=on_bad, prior=prior
        )
        if correction is not None and mode == "stream":
            raise EstimationError("Expected a correction with mode 'exact', got 'stream'")
        if resume is not None and mode != "stream":
            raise EstimationError(f"Expected resume with mode 'stream', got {mode!r}")
        model, chosen_layers, where = prepared(model, layers, device)
    alike: dict[str, Any] = {
        "mode": mode,
        "samples": samples,
        "tolerance": tolerance,
        "prior": prior,
        "seed": seed,
        "on_bad": on_bad,
        "precision": precision,
    }
    agree(together, model, chosen_layers, alike | {"resume": resume is not None})
    chosen = draw(loader, wanted, seed, together, weight)
    dropped: list[int] = []
    ledger = None
    batches = chosen.batches
    if resume is not None:
        file = resume if isinstance(resume, Resume) else Resume(resume)
        alike |= {"memory": memory, "forward": forward, "weight": weight}
        alike["layers"] = list(chosen_layers)
        with together.united(), norms.evaluating(model):
            ledger = Ledger(file, model, batches, alike, where, seed, dropped)
        batches = ledger.track.raw()
        file.went_on = sum(together.gather(ledger.held.passed))
    batches = finite(batches, on_bad, dropped.append)
    sample = Sample(
        together.watched(
            pieces(ledger.track.noted(batches) if ledger else batches, where, forward, weight)
        ),
        tensors=forward is None,
    )
    engine = Engine(
        model,
        chosen_layers,
        forward or call,
        memory,
        where,
        precision,
        progress,
        prior,
        correction,
        together,
    )
    with norms.evaluating(model), heap.kept(where):
        take_first(together, model)

        def look() -> tuple[int, int]:
            if ledger:
                sample.grow(ledger.held.place.rows)
                sample.clear()
            sample.grow(1)
            return sample.count + (ledger.held.passed if ledger else 0), sum(dropped)

        counts = together.together(look)
        if not any(count for count, _ in counts):
            raise EstimationError(no_data(sum(bad for _, bad in counts)))
        if mode == "stream":
            found = engine.stream(sample, chosen.most, ledger)
        else:
            found = engine.exact(sample, chosen.most, tolerance)
    statistics = replace(
        found,
        available=chosen.available,
        random=chosen.random,
        dropped=sum(together.gather(sum(dropped))),
        unvisited=tuple(name for name in chosen_layers if name not in found),
    )
    if resume is not None and resume is not file:
        file.remove()
    return statistics


@dataclass
class Engine:
    """Runs samples through one prepared model."""

    model: nn.Module
    layers: dict[str, nn.Module]
    forward: Forward
    memory: int | None
    where: torch.device
    precision: str
    progress: Progress | None
    prior: float
    correction: Settle | None
    world: World = ALONE
    rows: int = 1  # of a micro-batch

    def exact(self, sample: Sample, total: int | None, tolerance: float | None) -> Statistics:
        """Run all samples in lockstep; with a tolerance, ever more until it is met.

        `total` is how many this process has at most.
        """
        seen, limit = self.look(sample)
        most = limit if total is None else min(limit, total)
        goal = None if tolerance is None else FIRST_SAMPLES
        while True:
            here = min(most, most if goal is None else self.world.part(goal))

            def read(here: int = here) -> tuple[int, bool]:
                sample.grow(here, self._reading(total))
                return sample.count, here < most and not sample.ended

            states = self.world.together(read)
            count = sum(held for held, _ in states)
            with self.autocast():
                found = self._lockstep(sample, seen, count, self.prior)
            statistics = Statistics(found, count, mode="exact", tolerance=tolerance)
            met = tolerance is None or max(statistics.errors().values()) <= tolerance
            if met or goal is None or not any(more for _, more in states):
                break
            goal *= 2
        stopped = not (met and tolerance is not None) and most == limit and not sample.ended

        def left_out() -> bool:
            have = sample.count
            if stopped:
                sample.grow(have + 1)
            return sample.count > have

        return replace(statistics, limited=any(self.world.together(left_out)))

    def stream(self, sample: Sample, total: int | None, ledger: Ledger | None) -> Statistics:
        """Run chunk after chunk in lockstep, each by itself, and pool their moments.

        Of several processes each does so by itself, and what they found is pooled at the end.
        """
        if any(self.world.gather(sample.count)):
            seen, limit = self.look(sample)
        else:  # all had passed when it was stopped
            seen, limit = Probe((), 0, 0, frozenset(), frozenset()), 0
        chunk = max(2, min(STREAM_CHUNK, limit))
        if ledger:
            chunk, self.rows = ledger.sized(self.world, chunk, self.rows)
        fewest = 2 if self.world.size > 1 else 1

        def part() -> tuple[dict[str, Moments], int]:
            alone = replace(self, world=self.world.apart())
            with ledger.kept() if ledger else contextlib.nullcontext():
                own, count = alone._streamed(sample, seen, chunk, total, fewest, ledger)
            return {name: moments.to("cpu") for name, moments in own.items()}, count

        every = self.world.together(part)
        found: dict[str, Moments] = {}
        for own, _ in every:
            pool(found, own)
        if not found:
            raise EstimationError("each process has one sample, and streaming needs two in one")
        return Statistics(found, sum(count for _, count in every), mode="stream")

    def _streamed(
        self,
        sample: Sample,
        seen: Probe,
        chunk: int,
        total: int | None,
        fewest: int,
        ledger: Ledger | None,
    ) -> tuple[dict[str, Moments], int]:
        found = dict(ledger.held.moments) if ledger else {}
        count = ledger.held.passed if ledger else 0
        if count and self.progress:
            self.progress("streaming", count, total)
        while not sample.ended and (total is None or count < total):
            left = chunk if total is None else min(chunk, total - count)
            sample.grow(left)
            # A last sample alone has no variance in every layer.
            if sample.count < (2 if count else fewest):
                break
            with self.autocast():
                pool(found, self._lockstep(sample, seen, sample.count))
            count += sample.count
            sample.clear()
            if ledger:
                ledger.note(found, count)
            if self.progress:
                self.progress("streaming", count, total)
        return found, count

    def look(self, sample: Sample) -> tuple[Probe, int]:
        """Return what a small forward shows, and how many samples memory allows this process."""
        sharers = neighbours(self.world, self.where)
        memory = 0

        def probed() -> Probe | None:
            nonlocal memory
            memory = allowed(self.memory, self.where, sharers)
            return self._probed(sample) if sample.count else None

        every = self.world.together(probed)
        seen = every[self.world.rank] or next(seen for seen in every if seen)
        for rank, other in enumerate(every):
            if other and other.visits != seen.visits:
                raise EstimationError(
                    f"batches of rank {rank} pass other norm layers than those of rank "
                    f"{self.world.rank}: {few(other.visits)} for {few(seen.visits)}"
                )
        if not seen.visits:
            raise EstimationError(
                "no sample passed a norm layer with statistics: does forward= use the model?"
            )
        read = {name for probe in every if probe for name in probe.read}
        agree_on_buffers(self.world, self.model, read)
        layouts = self.world.gather(sample.layout == torch.contiguous_format)
        if any(layouts):  # of one that has data
            sample.lay_out(torch.contiguous_format)
        # All hold as many, so that what they hold is the same draw again for whoever certifies it.
        return seen, min(
            limit for limit in self.world.gather(self._limit(sample, seen, memory)) if limit
        )

    def _limit(self, sample: Sample, seen: Probe, memory: int) -> int:
        """Return how many samples memory allows; 0 where there are none to tell from."""
        if not sample.count:
            return 0
        rows = sample.first(2)
        size = size_of(rows)
        each = max(1, (seen.waiting + bytes_of(rows)) // size)
        while_running = max(1, (seen.running - seen.waiting) // size)
        memory = int(memory / SLACK) - min(KERNELS_BYTES, memory // 8)
        most = min(MICRO_BATCH_BYTES // each, memory // 8 // while_running, MOST_IN_MICRO_BATCH)
        self.rows = max(1, most)
        return max((memory - while_running * self.rows) // each, 2)

    def _probed(self, sample: Sample) -> Probe:
        try:
            return self._probe(sample)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            # The model calls view() on its feature maps, which channels-last ones refuse.
            sample.lay_out(torch.contiguous_format)
            return self._probe(sample)

    def _probe(self, sample: Sample) -> Probe:
        with self.autocast():
            return probe(self.model, self.layers, sample.first(2), self.forward)

    def _lockstep(
        self, sample: Sample, seen: Probe, count: int, prior: float = 0
    ) -> dict[str, Moments]:
        """Run what is held; `count` are held by all processes."""
        report = self.progress
        all_passed = set(seen.visits) == set(self.layers)
        alone = self.world.size == 1
        merging = Merging(self.world, self.layers, seen.visits, idle=not sample.count)
        with norms.restoring(self.model):  # what a prior blends with is the source's in every round
            return lockstep(
                self.model,
                self.layers,
                sample.micro_batches(self.rows),
                self.forward,
                weight=sample.weights(),
                settle=self._blended(count / (count + prior)),
                merge=None if alone else merging,
                owned=() if self._watched() else seen.owned,
                watched=self.world.watched,
                # A layer that the probe did not pass may still come for other samples.
                visits=len(seen.visits) if all_passed else None,
                progress=report and (lambda done: report("estimating", done, len(self.layers))),
            )

    def _blended(self, share: float) -> Settle:
        """Return what blends such a share of the target's with what stands in a layer now."""
        source = {name: norms.read(layer) for name, layer in self.layers.items()}
        settle = self.correction or as_found
        return lambda name, found: source[name].towards(*settle(name, found), share)

    def _watched(self) -> bool:
        """Whether hooks of the user's might keep an activation, which then must stay as it is."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.model.modules())

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context that the passes run in."""
        return autocast(self.precision, self.where)

    def _reading(self, total: int | None) -> Callable[[int], None] | None:
        report = self.progress
        return report and (lambda count: report("reading", count, total))


def pool(found: dict[str, Moments], more: Mapping[str, Moments]) -> None:
    """Add more moments, by layer, to those that were found before."""
    for name, moments in more.items():
        found[name] = found[name] + moments if name in found else moments


def checked(
    *,
    mode: str = "exact",
    samples: int | str | None = None,
    tolerance: float | None = None,
    on_bad: str = "skip",
    prior: float = 0,
) -> int | None:
    """Return how many samples to draw at most, or None for all."""
    if mode not in ("exact", "stream"):
        raise EstimationError(f"Expected mode to be 'exact' or 'stream', got {mode!r}")
    if tolerance is not None and (mode == "stream" or not tolerance > 0):
        raise EstimationError(
            f"Expected tolerance to be above 0, with mode 'exact', got {tolerance} with {mode!r}"
        )
    if not isinstance(prior, (int, float)) or not 0 <= prior < math.inf:
        raise EstimationError(f"Expected prior to be a number of 0 or more, got {prior!r}")
    if on_bad not in ("skip", "raise"):
        raise EstimationError(f"Expected on_bad to be 'skip' or 'raise', got {on_bad!r}")
    if samples is None:
        return DEFAULT_SAMPLES if tolerance is None else None
    if samples == "all":
        return None
    if not isinstance(samples, int) or samples < 1:
        raise EstimationError(f"Expected samples to be 1 or more, or 'all', got {samples!r}")
    return samples


def prepared(
    model: nn.Module, select: norms.Select, device: torch.device | str | None
) -> tuple[nn.Module, dict[str, nn.Module], torch.device]:
    """Return the bare model on its device (a copy if it has to move), its layers, the device."""
    model = norms.unwrap(model)
    if not norms.norm_layers(model):
        raise EstimationError(
            f"the model has no layer with data-set statistics to adapt: "
            f"{norms.why_nothing_to_adapt(model)}"
        )
    where = device_of(model) if device is None else resolve_device(device)
    if where != device_of(model):
        model = copied(model).to(where)
    layers = norms.norm_layers(model, select)
    if not layers:
        raise EstimationError("layers= chooses none of the model's norm layers")
    for layer in layers.values():
        norms.read(layer)  # a lazy layer is refused here
    return model, layers, where


def pieces(
    batches: Iterable[Any], where: torch.device, forward: Forward | None, weight: Weight | None
) -> Iterator[tuple[Any, Tensor | None]]:
    """Yield what the forward takes of each batch, on its device, and the samples' weights."""
    for batch in batches:
        piece = inputs_of(batch) if forward is None else batch
        weights = None if weight is None else weights_of(batch, weight, size_of(piece))
        yield to_device(piece, where), weights


def no_data(dropped: int) -> str:
    """Say why there is nothing to estimate from, `dropped` samples not having been finite."""
    if dropped:
        return f"there is no data to estimate from: {dropped} samples were not finite"
    return (
        "there is no data to estimate from: the loader is empty, or a generator that has been "
        "used up"
    )
