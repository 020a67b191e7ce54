"""What a model says about a set of images: its predictions, and how sure it is of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit import heap, norms
from adaptkit.batches import Caller, Forward, describe, device_of, labels_of
from adaptkit.device import resolve_device
from adaptkit.distributed import Share, world
from adaptkit.distributed.sharded import copied
from adaptkit.errors import DataError
from adaptkit.paired import wilson


@dataclass(frozen=True)
class Evaluation:
    """One model on n samples, sample by sample, so that two models can be compared in pairs.

    Args:
        predictions: shape (n,), int64, the class of the largest logit; −1 where a logit is NaN.
        confidence: shape (n,), float64, that class's softmax probability; NaN where −1.
        entropy: shape (n,), float64, of the softmax, in nats, 0 to log K; NaN where −1.
        labels: shape (n,), int64, or None.
        layers: name -> the statistics that the model's norm layers store.
        classes: how many classes the model has, K.
        nll: shape (n,), float64, −log of the label's probability, in nats; None without labels.
        brier: shape (n,), float64, Σ_k (p_k − [k = label])², 0 to 2; None without labels.
        top5: shape (n,), whether the label is among the five largest logits, those of equal ones
            first that come first; None without labels.
    """

    predictions: NDArray[np.int64]
    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    layers: Mapping[str, norms.Stored]
    classes: int | None = None
    nll: NDArray[np.float64] | None = None
    brier: NDArray[np.float64] | None = None
    top5: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Shape (n,): which predictions equal the labels; None without labels."""
        return None if self.labels is None else self.predictions == self.labels

    @property
    def accuracy(self) -> float | None:
        """The share of correct predictions, 0 to 1; None without labels."""
        return None if self.correct is None else float(self.correct.mean())

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """The accuracy's 95% Wilson interval; None without labels."""
        return None if self.correct is None else wilson(int(self.correct.sum()), len(self))


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Evaluation:
    """Run a classifier over a loader in eval mode and record what it predicts.

    In a job of several processes (see `adaptkit.distributed`) each runs it over its part, and all
    get the evaluation of the whole: about 50 bytes a sample go to each.

    Args:
        model: gives logits of shape (N, K), as a tensor or as the "logits" of a dict or object.
        loader: any iterable of tensors, (tensor, label) pairs or dicts; labels are int64 (N,).
        device: where to compute; by default where the model is.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        progress: called as ``progress("evaluating", done, None)``.

    Returns:
        Evaluation. The model's training flags are as they were.

    Raises:
        DataError: there is no data, some batches have labels and others none, a label is not one
            of the model's classes, or the model's output is not (N, K) logits.
        ModelError: as `adaptkit.adapt`.

    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.eye_(net.weight)
    >>> evaluate(net, [(torch.tensor([[5.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0]))]).accuracy
    0.5
    """
    if world().size > 1:
        model = norms.unwrap(model)  # DDP's forward is one of all processes
    where = device_of(model) if device is None else resolve_device(device)
    if where != device_of(model):
        model = copied(model).to(where)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    labels: list[Tensor] = []
    losses: list[tuple[Tensor, Tensor, Tensor]] = []
    classes = 0
    count = 0
    share, run = Share.of(loader, world()), Caller(model, where, forward)
    with share.world.united(), norms.evaluating(model), heap.kept(where), torch.no_grad():
        for batch in share:
            output = run(batch)
            logits = logits_of(output)
            classes = classes or logits.shape[1]
            if logits.shape[1] != classes:
                raise DataError(
                    f"Expected logits of as many classes in each batch, got {classes} and "
                    f"{logits.shape[1]}"
                )
            log_p = _log_softmax(logits)
            found.append(_summary(log_p))
            given = labels_of(batch)
            if given is not None:
                labels.append(_checked(given, logits))
                losses.append(_losses(log_p, labels[-1]))
            count += len(logits)
            if len(labels) not in (0, len(found)):
                raise DataError("some batches have labels and others have none")
            if progress:
                progress("evaluating", count, None)
    columns = zip(*found, strict=True), zip(*losses, strict=True), [labels] if labels else []
    names = ("predictions", "confidence", "entropy"), ("nll", "brier", "top5"), ("labels",)
    merged = share.merged(
        {
            name: torch.cat(list(parts)).numpy()
            for some, those in zip(names, columns, strict=True)
            for name, parts in zip(some, those, strict=False)
        }
    )
    if not merged:
        raise DataError(
            "there is no data to evaluate on: the loader is empty, or a generator that has been "
            "used up (pass a list or a DataLoader, which can be read twice)"
        )
    return Evaluation(
        **{"labels": None, **merged},
        layers={name: norms.read(layer) for name, layer in norms.norm_layers(model).items()},
        classes=max(share.world.gather(classes)),
    )


def logits_of(output: Any) -> Tensor:
    """Return the logits in a classifier's output: the tensor, or the "logits" of a dict or object.

    Raises:
        DataError: they are not of shape (N, K).

    >>> logits_of({"logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else describe(output)
        raise DataError(
            f"Expected the model to give logits of shape (N, K) with K classes, got {shape}: "
            f"pass forward=, a function of model and batch that returns them, or use "
            f"evaluate_dense for segmentation"
        )
    return output


def _log_softmax(logits: Tensor) -> Tensor:
    """In float64 where the device has it."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.detach().to(wide).log_softmax(1)


def _summary(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, confidence and entropy, on the CPU."""
    p = log_p.exp()
    confidence, predictions = p.max(1)
    entropy = -torch.where(p > 0, p * log_p, 0.0).sum(1)
    bad = p.isnan().any(1)
    return (
        predictions.masked_fill(bad, -1).cpu(),
        confidence.masked_fill(bad, torch.nan).double().cpu(),
        entropy.masked_fill(bad, torch.nan).double().cpu(),
    )


def _losses(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood, Brier score and whether the label is among the first five."""
    labels = labels.to(log_p.device)
    of_label = log_p.gather(1, labels[:, None])
    p = log_p.exp()
    brier = p.square().sum(1) - 2 * of_label.exp()[:, 0] + 1
    order = torch.arange(log_p.shape[1], device=log_p.device)
    ahead = (log_p > of_label) | ((log_p == of_label) & (order < labels[:, None]))
    top5 = ahead.sum(1).lt(5) & ~log_p.isnan().any(1)
    return (-of_label[:, 0]).double().cpu(), brier.double().cpu(), top5.cpu()


def _checked(labels: Tensor, logits: Tensor) -> Tensor:
    labels = labels.detach().cpu()
    if labels.is_floating_point() or labels.shape != logits.shape[:1]:
        raise DataError(
            f"Expected one whole number a sample as label, shape ({len(logits)},), got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    classes = logits.shape[1]
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise DataError(
            f"Expected labels from 0 to {classes - 1}, the model's classes, got {int(outside[0])}"
        )
    return labels.long()
