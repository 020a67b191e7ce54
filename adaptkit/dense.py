"""What a model says about every pixel: semantic segmentation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.batches import Forward, call, describe, device_of, labels_of, to_device
from adaptkit.errors import DataError

IGNORED = 255  # the label of pixels that do not count, as in Pascal VOC and Cityscapes
RESAMPLES = 1000


@dataclass(frozen=True)
class DenseEvaluation:
    """One model on n images, image by image, so that two models can be compared in pairs.

    Args:
        predicted: shape (n, K), int64, how many pixels were predicted as each class.
        confusion: shape (n, K, K), int64, pixels by label and prediction; None without labels.
        confidence: shape (n,), float64, mean over pixels of the largest probability.
        entropy: shape (n,), float64, mean over pixels of the softmax's entropy, in nats.
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
        return None if self.confusion is None else _iou(self.confusion.sum(0))

    def figures(self) -> dict[str, float]:
        """Return pixel_accuracy and mean_iou.

        Raises:
            DataError: there are no labels.
        """
        return _figures(self._labelled().sum(0))

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
    where = device_of(model)
    predicted: list[Tensor] = []
    confusion: list[Tensor] = []
    sure: list[Tensor] = []
    with norms.evaluating(model), torch.no_grad():
        for batch in loader:
            logits = _logits((forward or call)(model, to_device(batch, where)))
            classes = logits.shape[1]
            log_p = logits.float().log_softmax(1)
            p = log_p.exp()
            confidence, said = p.max(1)
            entropy = -torch.where(p > 0, p * log_p, 0.0).sum(1)
            sure.append(torch.stack([confidence.mean((1, 2)), entropy.mean((1, 2))]).double().cpu())
            said = said.cpu()
            predicted.append(torch.stack([m.flatten().bincount(minlength=classes) for m in said]))
            labels = labels_of(batch)
            if labels is not None:
                confusion.append(
                    _confusion(_checked(labels, said, classes, ignored), said, classes)
                )
            if len(confusion) not in (0, len(predicted)):
                raise DataError("some batches have labels and others have none")
            if progress:
                progress("evaluating", sum(map(len, predicted)), None)
    if not predicted:
        raise DataError("there is no data to evaluate on: the loader is empty")
    both = torch.cat(sure, 1).numpy()
    return DenseEvaluation(
        torch.cat(predicted).numpy(),
        torch.cat(confusion).numpy() if confusion else None,
        both[0],
        both[1],
        {name: norms.read(layer) for name, layer in norms.norm_layers(model).items()},
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

    Whole images are drawn, since the pixels of one image are not independent.
    """
    first, second = before._labelled(), after._labelled()
    n = len(first)
    generator = np.random.default_rng(seed)
    changes: dict[str, list[float]] = {}
    for _ in range(resamples):
        weights = np.bincount(generator.integers(n, size=n), minlength=n)
        a, b = (_figures(np.tensordot(weights, c, 1)) for c in (first, second))
        for name in a:
            changes.setdefault(name, []).append(b[name] - a[name])
    tail = 100 * (1 - level) / 2
    intervals = {k: np.nanpercentile(v, [tail, 100 - tail]) for k, v in changes.items()}
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}


def _figures(confusion: NDArray[np.int64]) -> dict[str, float]:
    total = confusion.sum()
    iou = _iou(confusion)
    known = np.isfinite(iou)
    return {
        "pixel_accuracy": float(np.trace(confusion) / total) if total else float("nan"),
        "mean_iou": float(iou[known].mean()) if known.any() else float("nan"),
    }


def _iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    nothing = np.full_like(hits, np.nan)
    return np.asarray(np.divide(hits, union, out=nothing, where=union > 0), dtype=np.float64)


def _confusion(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """Shape (N, K, K); labels of −1 do not count."""
    counts = []
    for truth, prediction in zip(labels, said, strict=True):
        known = truth >= 0
        pairs = truth[known] * classes + prediction[known]
        counts.append(pairs.bincount(minlength=classes**2).view(classes, classes))
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


def _checked(labels: Tensor, said: Tensor, classes: int, ignored: int) -> Tensor:
    labels = labels.detach().cpu()
    if labels.is_floating_point() or labels.shape != said.shape:
        raise DataError(
            f"Expected labels of shape {tuple(said.shape)}, one whole number a pixel, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long().masked_fill(labels == ignored, -1)
    outside = labels[(labels < -1) | (labels >= classes)]
    if len(outside):
        raise DataError(
            f"Expected labels from 0 to {classes - 1} or {ignored}, got {int(outside[0])}"
        )
    return labels
