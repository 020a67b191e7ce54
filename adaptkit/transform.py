"""From a decoded image to the normalised tensor that a model was trained on."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from PIL import Image

from adaptkit.errors import AdaptkitError, DataError
from adaptkit.layers.adain import Style, restyle

_RESIZE_MODES = ("stretch", "crop")
_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DEFAULT_INTERPOLATION = "bilinear"
_OPTIONAL = ("style_mean", "style_std", "gain", "offset")  # fields, left out of a record if None
_AMPLE = 2  # times the size that an image is resized to
_LONGEST = 2**13  # side of what a model sees
_MOST_PIXELS = 2**26  # that "crop" may enlarge an image to


@dataclass(frozen=True)
class Transform:
    """Resize, scale to [0, 1], then normalise: ``y[c] = (x[c] / 255 - mean[c]) / std[c]``.

    With a style, each image's channels get its means and standard deviations before they are
    normalised (`adaptkit.layers.restyle`), as an adaptation that looks at one image at a time. With
    a gain and an offset, ``gain[c] * y[c] + offset[c]`` comes in place of y, as an adaptation that
    treats all images of a domain alike (`adaptkit.input_fit.fit_input`).

    Args:
        image_size: (height, width) in pixels of what the model sees.
        channels: 1 (grey) or 3 (RGB).
        mean: one per channel, in units of [0, 1].
        std: one per channel, in units of [0, 1], positive.
        resize: "stretch" resizes straight to `image_size`, whatever the aspect ratio; "crop"
            resizes the shorter side to `resize_size`, then takes the centre.
        resize_size: pixels, for "crop" only; by default the larger side of `image_size` / 0.875.
        style_mean: one per channel, in units of [0, 1]; None, like `style_std`, for no style.
        style_std: one per channel, in units of [0, 1], positive.
        interpolation: of resizing: "nearest", "bilinear", "bicubic" or "lanczos", Pillow's, which
            average over what an image loses when it shrinks (but for "nearest").
        gain: one per channel, not 0; negative inverts. None, like `offset`, for no change.
        offset: one per channel, in the unit of the normalised image.

    Raises:
        AdaptkitError: a field is out of its range.

    >>> grey = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    >>> x = grey(Image.new("RGB", (16, 32), "white"))
    >>> x.shape, x.dtype, x.max().item()
    (torch.Size([1, 8, 8]), torch.float32, 1.0)
    """

    image_size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: str = "stretch"
    resize_size: int | None = None
    style_mean: tuple[float, ...] | None = None
    style_std: tuple[float, ...] | None = None
    interpolation: str = _DEFAULT_INTERPOLATION
    gain: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        sizes = (*self.image_size, 1 if self.resize_size is None else self.resize_size)
        if not all(isinstance(s, int) and s >= 1 for s in sizes):
            raise AdaptkitError(f"transform: sizes must be whole numbers of pixels, got {sizes}")
        if not all(isinstance(v, (int, float)) and isfinite(v) for v in (*self.mean, *self.std)):
            raise AdaptkitError(
                f"transform: mean and std must be numbers, got {self.mean} and {self.std}"
            )
        if max(sizes) > _LONGEST:
            raise AdaptkitError(f"transform: sizes are at most {_LONGEST:,} pixels, got {sizes}")
        if len(self.image_size) != 2:
            raise AdaptkitError(
                f"transform: image_size must be (height, width), got {self.image_size}"
            )
        if self.channels not in (1, 3):
            raise AdaptkitError(f"transform: channels must be 1 or 3, got {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise AdaptkitError(
                f"transform: mean and std need one number for each of {self.channels} channels, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if not all(s > 0 for s in self.std):
            raise AdaptkitError(f"transform: std must be positive, got {self.std}")
        self._check_pair("style_mean", "style_std", "positive", lambda s: s > 0)
        self._check_pair("offset", "gain", "not 0", lambda s: s != 0)
        if self.resize not in _RESIZE_MODES:
            raise AdaptkitError(
                f"transform: resize must be one of {', '.join(_RESIZE_MODES)}, got {self.resize!r}"
            )
        if self.interpolation not in tuple(_INTERPOLATIONS):
            raise AdaptkitError(
                f"transform: interpolation must be one of {', '.join(_INTERPOLATIONS)}, "
                f"got {self.interpolation!r}"
            )

    def _check_pair(
        self, shift: str, scale: str, wanted: str, fits: Callable[[float], bool]
    ) -> None:
        """Check two fields that are there together or not at all."""
        given = [v for v in (getattr(self, shift), getattr(self, scale)) if v is not None]
        numbers = [s for values in given for s in values if isinstance(s, (int, float))]
        if (
            len(given) not in (0, 2)
            or len(numbers) != self.channels * len(given)
            or not all(isfinite(s) for s in numbers)
            or not all(map(fits, getattr(self, scale) or ()))
        ):
            raise AdaptkitError(
                f"transform: {shift} and {scale} need one number for each of {self.channels} "
                f"channels, the latter {wanted}, got {getattr(self, shift)} and "
                f"{getattr(self, scale)}"
            )

    def towards(self, style: Style) -> "Transform":
        """Return the same transform with a style, given in units of [0, 1].

        >>> style = Style(torch.tensor([0.3]), torch.tensor([0.1]))
        >>> grey = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
        >>> round(grey.towards(style)(Image.new("L", (8, 8), "white")).mean().item(), 3)
        -0.4
        """
        mean, std = (tuple(round(v, 6) for v in t.tolist()) for t in (style.mean, style.std))
        return replace(self, style_mean=mean, style_std=std)

    def then(self, gain: torch.Tensor, offset: torch.Tensor) -> "Transform":
        """Return the same transform followed by a gain and an offset, each of shape (channels,).

        With ones and zeros it is the transform itself. An earlier gain and offset are kept and
        followed.

        >>> grey = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
        >>> inverted = grey.then(torch.tensor([-1.0]), torch.tensor([0.25]))
        >>> inverted(Image.new("L", (8, 8), "white")).mean().item()
        -0.75
        """
        g, b = gain.double().cpu(), offset.double().cpu()
        if self.gain is not None and self.offset is not None:
            b = b + g * torch.tensor(self.offset, dtype=torch.float64)
            g = g * torch.tensor(self.gain, dtype=torch.float64)
        if bool((g == 1).all() and (b == 0).all()):
            return replace(self, gain=None, offset=None)
        return replace(self, gain=tuple(g.tolist()), offset=tuple(b.tolist()))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Turn an image into a float32 tensor of shape (channels, height, width).

        Raises:
            DataError: as `pixels`.
        """
        return self.normalised(self.pixels(image)[None])[0]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return an image as the model sees it but not normalised: uint8 (channels, height, width).

        Raises:
            DataError: the image is so narrow that "crop" would enlarge it beyond all measure.

        >>> Transform(image_size=(8, 8)).pixels(Image.new("RGB", (16, 32), "white")).unique()
        tensor([255], dtype=torch.uint8)
        """
        mode = "L" if self.channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)  # which would copy
        size = self.resized(image.size)
        # 1 x 60,000 pixels, within Pillow's limit, would become 256 x 15 million: 12 GB.
        most = max(_MOST_PIXELS, image.width * image.height, min(size) ** 2)
        if self.resize == "crop" and size[0] * size[1] > most:
            raise DataError(
                f"too narrow to resize: {image.width} x {image.height} pixels, "
                f"the shorter side to {min(size)}"
            )
        if image.size != size:
            image = image.resize(size, _INTERPOLATIONS[self.interpolation])
        if self.resize == "crop":
            image = _centre(image, *reversed(self.image_size))
        values = np.array(image, ndmin=3)  # (1, height, width) of a grey one
        x = torch.from_numpy(values if self.channels == 1 else values.transpose(2, 0, 1))
        return x.contiguous()

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the model sees of a batch of `pixels`, uint8 (N, C, H, W), in float32.

        >>> Transform(image_size=(1, 1), channels=1, mean=(0.5,), std=(0.5,)).normalised(
        ...     torch.tensor([[[[0]]], [[[255]]]], dtype=torch.uint8)
        ... ).flatten()
        tensor([-1.,  1.])
        """
        x = pixels.to(torch.float32).mul_(1 / 255)
        if self.style_mean is not None and self.style_std is not None:
            style = Style(torch.tensor(self.style_mean), torch.tensor(self.style_std))
            x = torch.cat([restyle(image, style) for image in x.split(1)])
        x.sub_(_by_channel(self.mean)).div_(_by_channel(self.std))
        if self.gain is not None and self.offset is not None:
            x.mul_(_by_channel(self.gain)).add_(_by_channel(self.offset))
        return x

    @property
    def bare(self) -> "Transform":
        """The transform without what comes after its `pixels`."""
        zeros, ones = (0.0,) * self.channels, (1.0,) * self.channels
        none: dict[str, None] = dict.fromkeys(_OPTIONAL)
        return replace(self, mean=zeros, std=ones, **none)  # type: ignore[arg-type]

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return what an image of a (width, height) in pixels is resized to, before any cropping.

        >>> Transform((224, 224), resize="crop", resize_size=256).resized((2000, 1500))
        (341, 256)
        """
        if self.resize == "stretch":
            return self.image_size[1], self.image_size[0]
        shorter = self.resize_size or round(max(self.image_size) / 0.875)
        longer = int(shorter * max(size) / min(size))  # rounded down, as torchvision does
        return (shorter, longer) if size[0] <= size[1] else (longer, shorter)

    def needed(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return at what (width, height) a large image still gives nearly the same `pixels`.

        Twice of what it is resized to: measured in `python -m benchmarks decode`. All of it where
        the interpolation picks single pixels.
        """
        if self.interpolation == "nearest":
            return size
        width, height = self.resized(size)
        return _AMPLE * width, _AMPLE * height

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, as a checkpoint stores them.

        No style is left out, and so are no gain and bilinear interpolation, which older versions do
        not read.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.interpolation == _DEFAULT_INTERPOLATION:
            del values["interpolation"]
        return {k: v for k, v in values.items() if v is not None or k not in _OPTIONAL}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Transform":
        """Read what `to_dict` wrote; an unknown or ill-typed field is an AdaptkitError.

        >>> t = Transform(image_size=(8, 8))
        >>> Transform.from_dict(t.to_dict()) == t
        True
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(record) - known):
            raise AdaptkitError(f"transform: unknown fields {unknown}; known are {sorted(known)}")
        try:
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in record.items()
            }
            return cls(**values)
        except TypeError as error:
            raise AdaptkitError(f"transform: {error}") from None


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut out the centre, of what is too small with black around it, as torchvision does."""
    left, top = (max(n - m, 0) // 2 for n, m in ((width, image.width), (height, image.height)))
    if image.width < width or image.height < height:
        wide = Image.new(image.mode, (max(width, image.width), max(height, image.height)))
        wide.paste(image, (left, top))
        image = wide
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _by_channel(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
