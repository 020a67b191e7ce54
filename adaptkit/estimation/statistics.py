"""What estimation found: the moments of every norm layer, and how they get into a model."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.errors import CheckpointError, EstimationError, shown
from adaptkit.files import check_outputs, write_files
from adaptkit.moments import Moments

FORMAT = "adaptkit-statistics/1"


@dataclass(frozen=True)
class Statistics(Mapping[str, Moments]):
    """Layer name -> `Moments` over the target sample, and where they came from.

    Args:
        moments: in the order in which the layers are passed.
        samples: how many samples they were taken from.
        available: how many the loader offered, None where it cannot be known.
        random: whether `samples` is a random subset; else it is the loader's first ones.
        limited: whether `memory` allowed fewer samples than were asked for.
        dropped: how many samples were left out because they held NaN or an infinity.
        unvisited: layers that no sample passed; they keep what they have.
        mode: "exact" or "stream"; the latter is an approximation.
        tolerance: what was asked for; `errors` says what was reached.
        base: the SHA-256 of the checkpoint that they belong to, if known.
    """

    moments: Mapping[str, Moments]
    samples: int
    available: int | None = None
    random: bool = True
    limited: bool = False
    dropped: int = 0
    unvisited: tuple[str, ...] = field(default=())
    mode: str = "exact"
    tolerance: float | None = None
    base: str | None = None

    def __getitem__(self, name: str) -> Moments:
        return self.moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def to(self, device: torch.device | str) -> "Statistics":
        """Return these statistics on a device."""
        moved = {name: moments.to(device) for name, moments in self.moments.items()}
        return replace(self, moments=moved)

    def standard_errors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return layer name -> the standard errors of means and log-variances, each (C,).

        See `Moments.standard_error`.
        """
        return {name: moments.standard_error() for name, moments in self.moments.items()}

    def errors(self) -> dict[str, float]:
        """Return layer name -> its relative standard error, a number that `tolerance` bounds.

        The larger of two root mean squares over channels: of the mean's standard error in standard
        deviations of the channel, and of the log-variance's. Constant channels do not count.
        Infinite for fewer than two samples.
        """
        return {name: _relative_error(moments) for name, moments in self.moments.items()}

    def blend(self, source: nn.Module, *, prior: float) -> "Statistics":
        """Return statistics between the source model's and these, for small targets.

        With n samples and N = `prior`, linear in mean and in variance (Schneider et al. 2020):

            (N·source + n·target) / (N + n)

        Deep layers see what earlier ones normalise: take `estimate(..., prior=N)` of the same N for
        statistics that were seen behind such a blend. Standard errors of the result are unknown
        (NaN).

        Raises:
            EstimationError: `prior` is negative, or the source lacks a layer.
        """
        if not prior >= 0:
            raise EstimationError(f"Expected prior to be 0 or more, got {prior}")
        self.check_fit(source)
        layers = norms.norm_layers(source)
        share = self.samples / (self.samples + prior)
        blended = {}
        for name, moments in self.moments.items():
            new = moments.mean, moments.variance()
            mean, variance = norms.read(layers[name]).towards(*new, share)
            blended[name] = _of_variance(moments, mean, variance)
        return replace(self, moments=blended)

    def corrected(
        self, correction: Callable[[str, Moments], tuple[Tensor, Tensor]]
    ) -> "Statistics":
        """Return the means and variances that a correction makes of these.

        Take it of `estimate(..., correction=)` of the same correction, whose deep layers saw what
        earlier ones make of it. Standard errors of the result are unknown (NaN).
        """
        given = {name: correction(name, moments) for name, moments in self.moments.items()}
        changed = {name: _of_variance(self.moments[name], *pair) for name, pair in given.items()}
        return replace(self, moments=changed)

    def apply(self, model: nn.Module) -> nn.Module:
        """Write the means and unbiased variances into a model's norm layers, and return the model.

        Either all layers are written or none. Weights, eps, momentum, `num_batches_tracked` and
        training flags stay as they are.

        Raises:
            EstimationError: a layer is missing in the model, has another number of channels, or
                its dtype cannot hold the values.
        """
        self.check_fit(model)
        layers = norms.norm_layers(model)
        for name, moments in self.moments.items():
            norms.overwrite(layers[name], moments.mean, moments.variance())
        return model

    def save(self, path: str | Path, *, base: str | None = None, force: bool = False) -> Path:
        """Write a domain pack: safetensors, float32, 16 bytes a channel.

        Args:
            path: ending in .safetensors.
            base: the SHA-256 of the checkpoint that the statistics belong to.
            force: replace a file that exists.

        Raises:
            OutputError: `path` exists or cannot be written.
        """
        path = Path(path)
        check_outputs([path], force=force)
        write_files({path: self.to_bytes(base=base)})
        return path

    def to_bytes(self, *, base: str | None = None) -> bytes:
        """Return what `save` writes."""
        tensors = {}
        for name, moments in self.moments.items():
            mean_error, log_variance_error = moments.standard_error()
            values = (moments.mean, moments.variance(), mean_error, log_variance_error)
            tensors[name] = torch.stack(values).float().cpu().contiguous()
        header = {
            "format": FORMAT,
            "base": base or self.base,
            "counts": {k: (m.count, m.samples, m.within) for k, m in self.moments.items()},
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
        }
        return safetensors.torch.save(tensors, {"adaptkit": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read a domain pack; no code in it runs. Means and variances are exact in float32.

        Raises:
            CheckpointError: the file is missing, broken, or not a domain pack.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the content") -> "Statistics":
        """Read what `to_bytes` gave; `name` is what errors call it.

        Raises:
            CheckpointError: it is broken, or not a domain pack.
        """
        try:
            tensors = safetensors.torch.load(content)
            text = content[8 : 8 + int.from_bytes(content[:8], "little")]
            header = json.loads(json.loads(text)["__metadata__"]["adaptkit"])
            kind = header["format"]
        except Exception:  # noqa: BLE001  a broken file makes the readers raise anything
            raise CheckpointError(f"{name} is broken or not a domain pack") from None
        if kind != FORMAT:
            raise CheckpointError(f"{name} is of format {shown(kind)}; expected {FORMAT}")
        try:
            counts = header["counts"]
            moments = {layer: _restored(tensors[layer], *counts[layer]) for layer in counts}
            fields = {field: header[field] for field in _PLAIN_FIELDS}
            return cls(
                moments, **{**fields, "unvisited": tuple(fields["unvisited"])}, base=header["base"]
            )
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, ArithmeticError):
            raise CheckpointError(f"{name} is a domain pack with fields missing") from None

    def check_fit(self, model: nn.Module) -> None:
        """Raise EstimationError unless every layer is in the model, with as many channels."""
        layers = norms.norm_layers(model)
        for name, moments in self.moments.items():
            if name not in layers:
                raise EstimationError(f"the model has no norm layer '{name}' with statistics")
            stored = norms.read(layers[name])
            if stored.mean.shape != moments.mean.shape:
                raise EstimationError(
                    f"norm layer '{name}' has {len(stored.mean)} channels, "
                    f"the statistics {len(moments.mean)}"
                )
            values = (moments.mean, moments.variance())
            if not all(v.to(stored.mean.dtype).isfinite().all() for v in values):
                raise EstimationError(
                    f"the statistics of norm layer '{name}' do not fit into {stored.mean.dtype}"
                )


_PLAIN_FIELDS = (
    "samples",
    "available",
    "random",
    "limited",
    "dropped",
    "unvisited",
    "mode",
    "tolerance",
)


def _relative_error(moments: Moments) -> float:
    if moments.samples < 2:
        return math.inf
    if bool(moments.scatter.isnan().any()):  # of blended statistics
        return math.nan
    mean_error, log_variance_error = moments.standard_error()
    known = log_variance_error.isfinite()
    if not bool(known.any()):
        return 0.0  # every channel is constant
    std = (moments.m2 / moments.weight).sqrt()
    squares = [(e[known]).square().mean() for e in (mean_error / std, log_variance_error)]
    return float(torch.stack(squares).max().sqrt())


def _of_variance(like: Moments, mean: Tensor, variance: Tensor) -> Moments:
    """Return moments of this mean and unbiased variance whose standard errors are unknown."""
    bessel = 1 if like.within else like.count / (like.count - 1)
    unknown = torch.full_like(like.scatter, torch.nan)
    return replace(like, mean=mean, m2=variance * (like.weight / bessel), scatter=unknown)


def _restored(values: Tensor, count: int, samples: int, within: bool) -> Moments:
    """Return moments with the standard errors of a pack, as if all samples were of one size."""
    mean, variance, mean_error, log_variance_error = values.double()
    if count < 2 or samples < 1 or bool((variance < 0).any()):
        raise ValueError("these are no counts and variances")
    m2 = variance * (count if within else count - 1)
    sigma2 = m2 / count
    whole = count**2 * (samples - 1) / samples
    scatter = torch.zeros(3, 3, len(mean), dtype=torch.float64)
    scatter[0, 0] = count**2 / samples
    scatter[0, 2] = scatter[2, 0] = sigma2 * count**2 / samples
    scatter[1, 1] = mean_error.square() * whole
    scatter[2, 2] = (log_variance_error * sigma2).square() * whole + sigma2.square() * scatter[0, 0]
    return Moments(int(count), float(count), mean, m2, int(samples), scatter, bool(within))


def as_fields(statistics: Statistics) -> dict[str, Any]:
    """Return what a report says of statistics beside their values."""
    worst = max(statistics.errors().values())
    return {
        **{name: getattr(statistics, name) for name in _PLAIN_FIELDS},
        "largest_error": worst if math.isfinite(worst) else None,
    }
