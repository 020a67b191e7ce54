"""What a model says about every pixel: semantic segmentation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit import heap, norms
from adaptkit.batches import Caller, Forward, describe, device_of, labels_of
from adaptkit.distributed import Share, world
from adaptkit.errors import DataError

Floats = NDArray[np.float64]

IGNORED = 255  # the label of pixels that do not count, as in Pascal VOC and Cityscapes
RESAMPLES = 1000


@dataclass(frozen=True)
class DenseEvaluation:
    """One model on n images, image by image, so that two models can be compared in pairs.

    Args:
        predicted: shape (n, K), int64, how many pixels were predicted as each class; a pixel of NaN
            logits as none.
        confusion: shape (n, K, K + 1), int64, pixels by label and prediction, the last column of
            those predicted as none; None without labels.
        confidence: shape (n,), float64, mean over pixels of the largest probability; NaN for an
            image with NaN logits.
        entropy: shape (n,), float64, mean over pixels of the softmax's entropy, in nats; NaN for an
            image with NaN logits.
        layers: name -> the statistics that the model's norm layers store.
    """

    predicted: NDArray[np.int64]
    confusion: NDArray[np.int64] | None
    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    layers: Mapping[str, norms.Stored]

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def classes(self) -> int:
        """How many classes the model has, K."""
        return int(self.predicted.shape[1])

    @property
    def pixel_accuracy(self) -> float | None:
        """The share of labelled pixels that are predicted right, 0 to 1; None without labels."""
        return None if self.confusion is None else self.figures()["pixel_accuracy"]

    @property
    def mean_iou(self) -> float | None:
        """The mean over classes of `iou`, 0 to 1; None without labels."""
        return None if self.confusion is None else self.figures()["mean_iou"]

    @property
    def iou(self) -> NDArray[np.float64] | None:
        """Shape (K,): intersection over union, tp / (tp + fp + fn), over all pixels of all images.

        NaN for a class that no pixel has or is predicted as; None without labels.
        """
        return None if self.confusion is None else _iou(*_counts(self.confusion.sum(0)))

    def figures(self) -> dict[str, float]:
        """Return pixel_accuracy and mean_iou, NaN where every pixel is ignored.

        Raises:
            DataError: there are no labels.
        """
        found = _figures(*_counts(self._labelled().sum(0)))
        return {name: float(value) for name, value in found.items()}

    def _labelled(self) -> NDArray[np.int64]:
        if self.confusion is None:
            raise DataError("Expected an evaluation with labels")
        return self.confusion


def evaluate_dense(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    ignored: int = IGNORED,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> DenseEvaluation:
    """Run a segmentation model over a loader in eval mode and count what it predicts.

    In a job of several processes each runs it over its part, as in `adaptkit.evaluate`.

    Args:
        model: gives logits of shape (N, K, H, W), as a tensor or as the "out" or "logits" of a dict
            (torchvision's segmentation models give "out").
        loader: any iterable of tensors or (tensor, label) pairs; labels are int64 (N, H, W).
        forward: called as ``forward(model, batch)``, for batches of any other form.
        ignored: the label of pixels that do not count.
        progress: called as ``progress("evaluating", done, None)``.

    Raises:
        DataError: there is no data, some batches have labels and others none, a label is not one
            of the model's classes, or logits and labels have other shapes.

    Source: Everingham et al. 2010, IJCV 88 (Pascal VOC), for the mean of the classes' IoU.

    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> logits[0, 1, 0, :2] = 9.0
    >>> found = evaluate_dense(nn.Identity(), [(logits, torch.tensor([[[1, 0, 0, 255]]]))])
    >>> round(found.pixel_accuracy, 4), round(found.mean_iou, 4)
    (0.6667, 0.5)
    """
    if world().size > 1:
        model = norms.unwrap(model)  # DDP's forward is one of all processes
    where = device_of(model)
    predicted: list[Tensor] = []
    confusion: list[Tensor] = []
    sure: list[Tensor] = []
    share, run = Share.of(loader, world()), Caller(model, where, forward)
    with share.world.united(), norms.evaluating(model), heap.kept(where), torch.no_grad():
        for batch in share:
            logits = _logits(run(batch))
            classes = logits.shape[1]
            log_p = logits.float().log_softmax(1)
            p = log_p.exp()
            confidence, said = p.max(1)
            said = said.masked_fill(p.isnan().any(1), classes)
            entropy = -torch.where(p > 0, p * log_p, 0.0).sum(1)
            sure.append(torch.stack([confidence.mean((1, 2)), entropy.mean((1, 2))]).double().cpu())
            said = said.cpu()
            counts = [m.flatten().bincount(minlength=classes)[:classes] for m in said]
            predicted.append(torch.stack(counts))
            labels = labels_of(batch)
            if labels is not None:
                labels, counted = _checked(labels, said, classes, ignored)
                confusion.append(_confusion(labels, counted, said, classes))
            if len(confusion) not in (0, len(predicted)):
                raise DataError("some batches have labels and others have none")
            if progress:
                progress("evaluating", sum(map(len, predicted)), None)
    own = {}
    if predicted:
        both = torch.cat(sure, 1).numpy()
        own = {"predicted": torch.cat(predicted).numpy(), "confidence": both[0], "entropy": both[1]}
    if confusion:
        own["confusion"] = torch.cat(confusion).numpy()
    merged = share.merged(own)
    if not merged:
        raise DataError("there is no data to evaluate on: the loader is empty")
    return DenseEvaluation(
        **{"confusion": None, **merged},
        layers={name: norms.read(layer) for name, layer in norms.norm_layers(model).items()},
    )


def dense_intervals(
    before: DenseEvaluation,
    after: DenseEvaluation,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of the changes after − before, from a paired bootstrap.

    Whole images are drawn, since the pixels of one image are not independent. A figure that no
    resample has, as where every pixel is ignored, has no interval either. O(resamples·n·K) time.

    Raises:
        DataError: the evaluations have no labels, or are not of as many images.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if len(before) != len(after):
        raise DataError(
            f"Expected two evaluations of the same images, got {len(before)} and {len(after)}"
        )
    counts = [_counts(e._labelled()) for e in (before, after)]
    n = len(before)
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    weights = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
    first, second = (_figures(*(weights @ count for count in three)) for three in counts)
    tail = 100 * (1 - level) / 2
    intervals = {}
    for name in first:
        changes = second[name] - first[name]
        changes = changes[np.isfinite(changes)]
        if len(changes):
            low, high = np.percentile(changes, [tail, 100 - tail])
            intervals[name] = float(low), float(high)
    return intervals


def _counts(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Return hits, labels and predictions of each class, (..., K), from (..., K, K + 1)."""
    square = confusion[..., :-1]
    hits = np.diagonal(square, axis1=-2, axis2=-1)
    three = hits, confusion.sum(-1), square.sum(-2)
    return three[0].astype(float), three[1].astype(float), three[2].astype(float)


def _figures(hits: Floats, labels: Floats, predictions: Floats) -> dict[str, Floats]:
    """Return pixel_accuracy and mean_iou, shape (...), from counts of shape (..., K)."""
    iou = _iou(hits, labels, predictions)
    known = np.isfinite(iou)
    return {
        "pixel_accuracy": _ratio(hits.sum(-1), labels.sum(-1)),
        "mean_iou": _ratio(np.where(known, iou, 0).sum(-1), known.sum(-1)),
    }


def _iou(hits: Floats, labels: Floats, predictions: Floats) -> Floats:
    return _ratio(hits, labels + predictions - hits)


def _ratio(above: Floats, below: Floats | NDArray[np.int64]) -> Floats:
    """NaN where there is nothing to divide by."""
    above = np.asarray(above)
    nothing = np.full_like(above, np.nan)
    return np.asarray(np.divide(above, below, out=nothing, where=np.asarray(below) > 0))


def _confusion(labels: Tensor, counted: Tensor, said: Tensor, classes: int) -> Tensor:
    """Shape (N, K, K + 1)."""
    counts = []
    for truth, known, prediction in zip(labels, counted, said, strict=True):
        pairs = truth[known] * (classes + 1) + prediction[known]
        table = pairs.bincount(minlength=classes * (classes + 1))
        counts.append(table.view(classes, classes + 1))
    return torch.stack(counts)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits", output))
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[1] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else describe(output)
        raise DataError(
            f"Expected the model to give logits of shape (N, K, H, W) with K classes, got {shape}"
        )
    return output.detach()


def _checked(labels: Tensor, said: Tensor, classes: int, ignored: int) -> tuple[Tensor, Tensor]:
    """Return labels, and which of them count."""
    labels = labels.detach().cpu()
    if labels.is_floating_point() or labels.shape != said.shape:
        raise DataError(
            f"Expected labels of shape {tuple(said.shape)}, one whole number a pixel, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long()
    counted = labels != ignored
    outside = labels[counted & ((labels < 0) | (labels >= classes))]
    if len(outside):
        raise DataError(
            f"Expected labels from 0 to {classes - 1} or {ignored}, got {int(outside[0])}"
        )
    return labels, counted
