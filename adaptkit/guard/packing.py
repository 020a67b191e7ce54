"""A calibration in few bytes: two numbers a class and channel can be twice the model itself."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptkit.errors import DataError
from adaptkit.guard.class_features import ClassFeatures
from adaptkit.guard.class_maps import ClassMaps
from adaptkit.guard.class_moments import ClassMoments

if TYPE_CHECKING:
    from adaptkit.guard.calibration import Calibration

FORMAT = "adaptkit-calibration/1"
_EPS = 1e-5
_FEATURES = ""  # the name under which features stand among the layers
_HALF = torch.finfo(torch.float16).max
_MOST_CLASSES = 1_000_000
_FARTHEST = 50.0  # of the middle of columns, in standard deviations and e-folds


class _Layers(Mapping[str, Tensor]):
    """Layer name -> (K, C), computed when it is asked for, so that a thousand classes fit."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = [name for name in names if name != _FEATURES], read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Table:
    """What is known of K classes, K × P in all: M = middle + left·right, or + left alone.

    A layer of C channels has 2C columns, (μ_k − m) / √v and log(σ²_k / v), with m and v of all
    classes together; features of D dimensions have D, (μ_k − m) / √v.

    Args:
        widths: name -> number of channels, in order.
        scale: shape (2, ΣC), m and v.
        middle: shape (P,).
        left: shape (K, R) or (K, P).
        right: shape (R, P), or None.
    """

    def __init__(
        self,
        widths: dict[str, int],
        scale: Tensor,
        middle: Tensor,
        left: Tensor,
        right: Tensor | None,
    ) -> None:
        self.widths, self.scale = widths, scale
        self.middle, self.left, self.right = middle, left, right
        self._at: dict[str, tuple[int, int]] = {}
        channel = column = 0
        for name, width in widths.items():
            self._at[name] = channel, column
            channel += width
            column += width if name == _FEATURES else 2 * width
        self.columns = column

    def means(self, name: str) -> Tensor:
        """Return the classes' means, (K, C), float64."""
        m, scale = self._scale(name)
        return m + self._read(name, 0) * scale

    def variances(self, name: str) -> Tensor:
        """Return the classes' variances in a layer, (K, C), float64."""
        _, scale = self._scale(name)
        found = self._read(name, self.widths[name]).exp() * scale.square() - _EPS
        return found.clamp_min(0)

    def _scale(self, name: str) -> tuple[Tensor, Tensor]:
        start = self._at[name][0]
        m, v = self.scale[:, start : start + self.widths[name]].double()
        return m, (v + _EPS).sqrt()

    def _read(self, name: str, offset: int) -> Tensor:
        start = self._at[name][1] + offset
        part = slice(start, start + self.widths[name])
        found = self.left.double()[:, part] if self.right is None else self._product(part)
        return found + self.middle[part].double()

    def _product(self, part: slice) -> Tensor:
        assert self.right is not None  # noqa: S101
        return self.left.double() @ self.right[:, part].double()


def pack(calibration: "Calibration", budget: int | None) -> bytes:
    """See `Calibration.to_bytes`."""
    matrix, widths, scale = _matrix(calibration)
    middle = matrix.mean(0)
    centred = matrix - middle
    fixed: dict[str, Tensor] = {
        "scale": scale.float(),
        "middle": _half(middle),
        "counts": calibration.moments.counts,
        **_sparse(calibration.confusion),
    }
    columns = torch.cat([i for name, i in _parts(widths) if name != _FEATURES])
    header = {
        "format": FORMAT,
        "widths": widths,
        "confidence": calibration.confidence,
        "typicality": calibration.typicality,
    }

    def written(parts: Mapping[str, Tensor], said: Mapping[str, Any], error: float) -> bytes:
        text = json.dumps({**header, **said, "error": error})
        whole = {name: value.contiguous() for name, value in {**fixed, **parts}.items()}
        return safetensors.torch.save(whole, {"adaptkit": text})

    k, p = centred.shape
    least = 0
    for maps, axes in _LESS:
        parts, said = _others(calibration, maps, axes)
        half = _half(centred)
        whole = written({"left": half, **parts}, said, _rms(half.double() - centred, columns))
        if budget is None or len(whole) <= budget:
            return whole
        least = len(written(parts, said, 0.1)) + 256  # of headers for two more
        rank = min((budget - least) // (2 * (k + p)), k)
        if rank >= min(_ENOUGH, k) or (rank >= 1 and (maps, axes) == _LESS[-1]):
            vectors = torch.linalg.eigh(centred @ centred.T)[1]
            left = _half(vectors[:, -rank:])
            right = _half(left.double().T @ centred)
            error = _rms(left.double() @ right.double() - centred, columns)
            return written({"left": left, "right": right, **parts}, said, error)
    raise DataError(
        f"a calibration of {k} classes and {p} figures on each takes {least + 2 * (k + p):,} bytes "
        f"at least, and {budget:,} are allowed: allow more"
    )


# What is given up by turns, maps and all but so many axes, to leave classes this many ways in which
# to differ.
_ENOUGH = 8
_LESS = ((True, 128), (True, 32), (False, 128), (False, 32), (False, 8))


def _others(
    calibration: "Calibration", maps: bool, axes: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of features and maps, and what the header says of them."""
    tensors: dict[str, Tensor] = {}
    said: dict[str, Any] = {"rest": None, "map_error": None, "map_scale": 1.0}
    if calibration.features is not None:
        features = calibration.features.short(axes)
        tensors["axes"] = _half(torch.from_numpy(features.axes))
        tensors["variances"] = torch.from_numpy(features.variances).float()
        said["rest"] = features.rest
    if calibration.maps is not None and maps:
        scale = float(np.abs(calibration.maps.maps).max()) or 1.0
        tensors["maps"] = _half(torch.from_numpy(calibration.maps.maps / scale))
        said |= {"map_error": calibration.maps.error, "map_scale": scale}
    return tensors, said


def unpack(content: bytes) -> dict[str, Any]:
    """Return the fields of a `Calibration`.

    Raises:
        DataError: the bytes are broken, or something else.
    """
    try:
        tensors = safetensors.torch.load(content)
        text = content[8 : 8 + int.from_bytes(content[:8], "little")]
        header = json.loads(json.loads(text)["__metadata__"]["adaptkit"])
        if header["format"] != FORMAT:
            raise DataError(
                f"it is a calibration of format {str(header['format'])[:40]}; expected {FORMAT}"
            )
        return _fields(tensors, header)
    except DataError:
        raise
    except Exception:  # noqa: BLE001  a broken file makes the readers raise anything
        raise DataError("it is broken or no calibration: calibrate the model anew") from None


def _fields(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    counts = tensors["counts"].double()
    k = len(counts)
    widths = {str(name): int(width) for name, width in header["widths"].items()}
    table = _Table(
        widths, tensors["scale"], tensors["middle"], tensors["left"], tensors.get("right")
    )
    rank = table.columns if table.right is None else len(table.right)
    shapes = {
        "counts": (k,),
        "scale": (2, sum(widths.values())),
        "middle": (table.columns,),
        "left": (k, rank),
        "right": (rank, table.columns),
    }
    known = all(tuple(tensors[n].shape) == shape for n, shape in shapes.items() if n in tensors)
    finite = all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
    typicality = tuple(map(float, header["typicality"]))
    said = (float(header["confidence"]), float(header["error"]), *typicality)
    if not (known and finite and min(widths.values()) > 0 and bool((counts > 0).all())):
        raise ValueError
    if not (len(typicality) == 4 and all(map(math.isfinite, said)) and k <= _MOST_CLASSES):
        raise ValueError
    scale = tensors["scale"]
    if not (bool((scale[1] >= 0).all()) and float(tensors["middle"].abs().max()) < _FARTHEST):
        raise ValueError
    features = _features(tensors, widths, table, header) if _FEATURES in widths else None
    maps = _maps(tensors["maps"], header, k) if "maps" in tensors else None
    confusion = np.zeros((k, k), np.int64)
    where = tensors["predicted"].long().numpy()
    if not where.size or where[0].min() < 0 or where[0].max() >= k * k or where[1].min() < 0:
        raise ValueError
    confusion.flat[where[0]] = where[1]
    return {
        "moments": ClassMoments(
            _Layers(widths, table.means), _Layers(widths, table.variances), counts
        ),
        "features": features,
        "maps": maps,
        "confusion": confusion,
        "confidence": said[0],
        "typicality": typicality,
        "error": said[1],
    }


def _features(
    tensors: dict[str, Tensor], widths: dict[str, int], table: _Table, header: dict[str, Any]
) -> ClassFeatures:
    found = ClassFeatures(
        table.means(_FEATURES).numpy(),
        tensors["axes"].double().numpy(),
        tensors["variances"].double().numpy(),
        float(header["rest"]),
    )
    width, axes = found.axes.shape
    if (width, axes) != (widths[_FEATURES], len(found.variances)):
        raise ValueError
    if not (0 < found.rest < math.inf and (found.variances > 0).all()):
        raise ValueError
    return found


def _maps(tensor: Tensor, header: dict[str, Any], k: int) -> ClassMaps:
    with np.errstate(over="ignore"):
        found = tensor.double().numpy() * float(header["map_scale"])
    error = float(header["map_error"])
    if len(found) != k or not 3 <= found.ndim <= 5 or not found.size:
        raise ValueError
    if not (np.isfinite(found).all() and math.isfinite(error)):
        raise ValueError
    return ClassMaps(found, error)


def _matrix(calibration: "Calibration") -> tuple[Tensor, dict[str, int], Tensor]:
    """Return the matrix, the widths and the scale of a `_Table`, exact."""
    moments = calibration.moments
    columns, scales, widths = [], [], {}
    for name in moments.mean:
        m, v = moments.mixed(name, moments.shares)
        scale = (v + _EPS).sqrt()
        columns += [
            (moments.mean[name] - m) / scale,
            ((moments.variance[name].clamp_min(0) + _EPS) / (v + _EPS)).log(),
        ]
        scales.append(torch.stack([m, v]))
        widths[name] = len(m)
    if calibration.features is not None:
        means = torch.from_numpy(calibration.features.means)
        m, v = means.mean(0), means.var(0, correction=0)
        columns.append((means - m) / (v + _EPS).sqrt())
        scales.append(torch.stack([m, v]))
        widths[_FEATURES] = len(m)
    return torch.cat(columns, 1), widths, torch.cat(scales, 1)


def _parts(widths: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Yield each name and the columns that are its."""
    column = 0
    for name, width in widths.items():
        size = width if name == _FEATURES else 2 * width
        yield name, torch.arange(column, column + size)
        column += size


def _sparse(confusion: NDArray[np.int64]) -> dict[str, Tensor]:
    where = np.flatnonzero(confusion)
    wide = confusion.size > np.iinfo(np.int32).max
    found = torch.from_numpy(np.stack([where, confusion.flat[where]]))
    return {"predicted": found if wide else found.int()}


def _half(x: Tensor) -> Tensor:
    return x.clamp(-_HALF, _HALF).half()


def _rms(error: Tensor, columns: Tensor) -> float:
    return float(error[:, columns].square().mean().sqrt())
