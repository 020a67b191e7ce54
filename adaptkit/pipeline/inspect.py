"""What a checkpoint is, before anything is done with it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adaptkit.checkpoint import Checkpoint
from adaptkit.norms import Stored, norm_layers, read, unwrap, without_statistics
from adaptkit.pipeline.opening import notes_on, open_checkpoint, preparation

_FAR = 100.0  # standard deviations of a mean from zero
_WIDE = 1e6  # times the smallest variance of a layer's live channels, the largest
REMARKS = {
    "fresh": "means 0 and variances 1, as if no data had ever passed the layer",
    "dead": "channels of no more variance than eps: they carry next to nothing",
    "far means": f"a mean more than {_FAR:g} standard deviations from 0",
    "wide": f"variances of live channels more than {_WIDE:.0e} times apart",
}


@dataclass(frozen=True)
class NormLayer:
    """A norm layer as a table shows it.

    Args:
        name: in the model.
        kind: its class.
        channels: None where it does not say.
        eps: None where it has none.
        momentum: None where it has none, or averages cumulatively.
        adaptable: whether it stores data-set statistics.
        why_not: "" if it does.
        variance: the smallest and largest that it stores.
        farthest_mean: the largest |mean| / standard deviation that it stores.
        dead: channels whose variance is no more than eps: nothing comes through them but noise.
        fresh: whether its statistics are those of a layer that no data has passed.
        remark: what looks odd in all that, in the words of `REMARKS`; "" where nothing does.
    """

    name: str
    kind: str
    channels: int | None
    eps: float | None
    momentum: float | None
    adaptable: bool
    why_not: str = ""
    variance: tuple[float, float] | None = None
    farthest_mean: float | None = None
    dead: int | None = None
    fresh: bool | None = None
    remark: str = ""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_checkpoint` found.

    Args:
        path: of the file.
        kind: of file, as "torch" or "safetensors".
        bytes: of the file; of a sharded checkpoint, of index and shards.
        sha256: see `Checkpoint`.
        arch: of the model.
        arch_kwargs: of its constructor.
        recognised: whether that was found in the keys and shapes.
        parameters: how many numbers the model has that training changes.
        tensors: in the file, by dtype.
        state_dict: where in the file it stands, as "ema.state_dict"; "" if it is all there is.
        classes: the outputs' names, if known.
        transform: from an image to the model's input, if known.
        transform_from: who says so.
        preparation: the same in words.
        adapted: where the statistics come from, if the file was adapted.
        calibration: what it says of its own domain, if it was calibrated (see `Calibration`).
        layers: every norm layer.
        notes: what else there is to know.
    """

    path: str
    kind: str
    bytes: int
    sha256: str
    arch: str
    arch_kwargs: dict[str, Any]
    recognised: bool
    parameters: int
    tensors: dict[str, int]
    state_dict: str
    classes: tuple[str, ...] | None
    transform: dict[str, Any] | None
    transform_from: str | None
    preparation: str
    adapted: dict[str, Any] | None
    calibration: dict[str, Any] | None
    layers: tuple[NormLayer, ...]
    notes: tuple[str, ...]

    @property
    def adaptable(self) -> tuple[NormLayer, ...]:
        """The layers that AdaBN re-estimates."""
        return tuple(layer for layer in self.layers if layer.adaptable)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)


def inspect_checkpoint(
    path: str | Path, *, arch: str | None = None, arch_kwargs: Mapping[str, Any] | None = None
) -> Inspection:
    """Read a checkpoint and say what it is. No code in the file runs, and nothing is written.

    Args:
        path: see `load_checkpoint`, like the next two.
        arch: overrides the architecture that the file names, or has in its keys.
        arch_kwargs: for the architecture's constructor.

    Raises:
        AdaptkitError: what is wrong with the checkpoint.
    """
    checkpoint = open_checkpoint(path, arch=arch, arch_kwargs=arch_kwargs)
    found = checkpoint.state_dict
    content = checkpoint.content
    return Inspection(
        path=str(path),
        kind=content.kind,
        bytes=checkpoint.size,
        sha256=checkpoint.sha256,
        arch=checkpoint.arch,
        arch_kwargs=checkpoint.arch_kwargs,
        recognised=checkpoint.recognised,
        parameters=sum(p.numel() for p in checkpoint.model.parameters()),
        tensors=dict(Counter(str(v.dtype).removeprefix("torch.") for v in found.values())),
        state_dict="" if content.kind == "program" else ".".join(content.path),
        classes=checkpoint.classes,
        transform=None if checkpoint.transform is None else checkpoint.transform.to_dict(),
        transform_from=checkpoint.transform_from,
        preparation=preparation(checkpoint),
        adapted=checkpoint.adapted,
        calibration=_calibration(checkpoint),
        layers=tuple(_layers(checkpoint)),
        notes=tuple(notes_on(checkpoint)),
    )


def _calibration(checkpoint: Checkpoint) -> dict[str, Any] | None:
    found = checkpoint.calibration
    if found is None:
        return None
    return {
        "classes": found.classes,
        "accuracy": found.accuracy,
        "confidence": found.confidence,
        "typicality": list(found.typicality),
        "map_error": None if found.maps is None else found.maps.error,
        "error": found.error,
    }


def _layers(checkpoint: Checkpoint) -> list[NormLayer]:
    adaptable = norm_layers(checkpoint.model)
    others = without_statistics(checkpoint.model)
    modules = dict(unwrap(checkpoint.model).named_modules())
    return [
        _layer(name, module, others.get(name, ""), read(module) if name in adaptable else None)
        for name, module in modules.items()
        if name in adaptable or name in others
    ]


def _layer(name: str, layer: nn.Module, why_not: str, stored: Stored | None) -> NormLayer:
    momentum = getattr(layer, "momentum", None)
    eps = getattr(layer, "eps", None)
    plain = NormLayer(
        name=name,
        kind=type(layer).__name__,
        channels=_channels(layer, stored),
        eps=None if eps is None else float(eps),
        momentum=None if momentum is None else float(momentum),
        adaptable=stored is not None,
        why_not=why_not,
    )
    if stored is None:
        return plain
    mean, variance = stored.mean.double(), stored.variance.double()
    live = variance[variance > stored.eps]
    found = {
        "variance": (float(variance.min()), float(variance.max())),
        "farthest_mean": float(
            (mean.abs() / (variance + stored.eps).sqrt().clamp_min(1e-30)).max()
        ),
        "dead": len(variance) - len(live),
        "fresh": bool((mean == 0).all() and (variance == 1).all()),
    }
    spread = float(live.max() / live.min()) if len(live) else 1.0
    return NormLayer(**{**asdict(plain), **found, "remark": _remark(found, spread)})


def _remark(found: Mapping[str, Any], spread: float) -> str:
    if found["fresh"]:
        return "fresh"
    odd = []
    if found["dead"]:
        odd.append(f"{found['dead']} dead")
    if found["farthest_mean"] > _FAR:
        odd.append("far means")
    if spread > _WIDE:
        odd.append("wide")
    return ", ".join(odd)


def _channels(layer: nn.Module, stored: Stored | None) -> int | None:
    if stored is not None:
        return len(stored.mean)
    for name in ("num_features", "num_channels"):
        if isinstance(count := getattr(layer, name, None), int):
            return count
    shape = getattr(layer, "normalized_shape", None)
    return int(shape[-1]) if shape else None
