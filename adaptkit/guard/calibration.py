"""What has to be known of the source, class by class, to judge a target without its labels."""

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, inputs_of, labels_of, to_device
from adaptkit.distributed import one_process, world
from adaptkit.errors import DataError, EstimationError
from adaptkit.estimation.sampling import finite
from adaptkit.evaluation import logits_of
from adaptkit.features import NoFeaturesError, Tap
from adaptkit.guard.class_features import ClassFeatures
from adaptkit.guard.class_maps import ClassMaps, Floats, in_places
from adaptkit.guard.class_moments import ClassMoments, class_moments
from adaptkit.guard.packing import pack, unpack
from adaptkit.guard.typicality import Watch, spread


@dataclass(frozen=True, eq=False)
class Calibration:
    """A source model's picture of its own domain.

    Args:
        moments: what each norm layer sees of each class.
        features: where the pooled features of each class lie; None where the model has no layer
            that gives a vector a sample.
        maps: what inputs of each class look like on average; None of inputs without places, or of
            batches that only `forward=` knows.
        confusion: shape (K, K), int64: how many samples of class i are predicted as class j.
        confidence: the mean of the largest probability, what the model expects of its accuracy.
        typicality: quantiles at 0.5, 0.9, 0.95, 0.99 of `severity` over draws of 32 source samples,
            some of which lack classes.
        error: of moments that were packed into fewer bytes than they take in float16: the root mean
            square over all classes, layers and channels of the error in a mean, in the channel's
            standard deviations, and in a log-variance.
    """

    moments: ClassMoments
    features: ClassFeatures | None
    maps: ClassMaps | None
    confusion: NDArray[np.int64]
    confidence: float
    typicality: tuple[float, ...]
    error: float = 0.0

    @property
    def classes(self) -> int:
        """How many classes the model has, K."""
        return self.moments.classes

    @property
    def accuracy(self) -> float:
        """Of the model on what it was calibrated on."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def to_bytes(self, budget: int | None = None) -> bytes:
        """Return what a file can hold, in no more than `budget` bytes.

        Means and log-variances of the classes in float16; where that is too much, K × 2C of them
        as a product of K × R and R × 2C by singular values, of the largest R that fits. Where that
        is less than 8, axes of the features' covariance are given up, then the maps.

        Raises:
            DataError: not even R = 1 fits.
        """
        return pack(self, budget)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Calibration":
        """Read what `to_bytes` gave; no code in it runs.

        Raises:
            DataError: it is broken, or something else.
        """
        return cls(**unpack(content))


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Calibration:
    """Measure, in one forward of labelled source data, what a target is later judged by.

    Data that the model was not trained on is best, since it shows what the model does with new
    images. `python -m benchmarks guard` takes 1,500 where there are so many.

    Args:
        model: a classifier with its source statistics, run in eval mode and left as it was.
        loader: yields (tensor, labels) pairs or dicts, labels of 0 to K − 1, as for `evaluate`.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        seed: of the draws behind `Calibration.typicality`.
        progress: called as ``progress("calibrating", done, None)``.

    Raises:
        DataError: there are no labels, or a class has fewer than two samples, or the model's output
            is not logits.
        EstimationError: the model has no norm layer with data-set statistics, or gives values that
            are not finite. Samples that are not are left out.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    >>> x, y = torch.randn(64, 2), torch.arange(64) % 2
    >>> int(calibrate(net, [(x, y)]).confusion.sum())
    64
    """
    one_process("calibrate")
    model = norms.unwrap(model)
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise DataError("there is no source data to calibrate on: the loader is empty")
    where = device_of(model)
    with norms.evaluating(model), torch.no_grad():
        k = logits_of((forward or call)(model, to_device(first, where))).shape[1]
    layers = norms.norm_layers(model)
    watch = Watch({name: norms.read(layer) for name, layer in layers.items()})
    logits, labels, vectors, places = [], [], [], []

    with contextlib.ExitStack() as undo:
        for handle in watch.hooks(layers):
            undo.callback(handle.remove)
        try:
            tap: Tap | None = undo.enter_context(Tap(model))
        except NoFeaturesError:
            tap = None

        def seen(net: nn.Module, batch: Any) -> Any:
            nonlocal tap
            output = (forward or call)(net, batch)
            watch.take()
            logits.append(logits_of(output).detach().cpu().double())
            labels.append(_labels(batch))
            places.append(places_of(batch))
            try:
                if tap:
                    vectors.append(tap.take(len(logits[-1])))
            except NoFeaturesError:
                tap = None
            return output

        moments = class_moments(
            model,
            world().watched(finite(itertools.chain([first], batches), "skip", lambda _: None)),
            classes=k,
            forward=seen,
            progress=progress and (lambda _, n, total: progress("calibrating", n, total)),
        )
    y = np.concatenate(labels)
    p = torch.cat(logits).softmax(1)
    if not bool(p.isfinite().all()) or (tap and not np.isfinite(np.concatenate(vectors)).all()):
        raise EstimationError("the model gives values that are not finite on the source images")
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (y, p.argmax(1).numpy()), 1)
    return Calibration(
        moments,
        ClassFeatures.of(np.concatenate(vectors), y, k) if tap else None,
        _maps(places, y, k),
        confusion,
        float(p.max(1).values.mean()),
        spread(watch.found(), y, seed=seed),
    )


def places_of(batch: Any) -> Floats | None:
    """Return a batch's inputs averaged down (see `in_places`), or None."""
    try:
        return in_places(inputs_of(batch))
    except DataError:
        return None


def _maps(places: list[Floats | None], labels: NDArray[np.int64], k: int) -> ClassMaps | None:
    known = [part for part in places if part is not None]
    if len(known) < len(places) or len({part.shape[1:] for part in known}) > 1:
        return None
    return ClassMaps.of(np.concatenate(known), labels, k)


def _labels(batch: Any) -> NDArray[np.int64]:
    labels = labels_of(batch)
    if labels is None:
        raise DataError("Expected source data with labels, in pairs of (tensor, labels)")
    return labels.detach().cpu().numpy().astype(np.int64)
