"""What can be said of an image without a model: brightness, contrast, sharpness, colours."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from adaptkit.errors import DataError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def image_figures(images: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return figures of each image, by name.

    - brightness: the mean of the luminance (BT.601 for three channels, else the channels' mean).
    - contrast: its standard deviation over pixels.
    - sharpness: the variance of its Laplacian over inner pixels; 0 below 3 x 3 pixels.
    - mean_0, std_0, mean_1, …: of each channel, over pixels.

    Args:
        images: shape (N, C, H, W), in the unit of the pixels (0 to 1 before normalising).

    Returns:
        name -> shape (N,), float64.

    Raises:
        DataError: `images` has another shape.

    >>> image_figures(torch.full((2, 3, 4, 4), 0.5))["brightness"].round(6).tolist()
    [0.5, 0.5]
    """
    if images.ndim != 4 or not images.numel():
        raise DataError(f"Expected images of shape (N, C, H, W), got {tuple(images.shape)}")
    x = images.detach().cpu().double()
    channels = x.shape[1]
    share = torch.tensor(_LUMA if channels == 3 else [1 / channels] * channels).double()
    luminance = torch.einsum("nchw,c->nhw", x, share / share.sum())
    sharpness = torch.zeros(len(x), dtype=torch.float64)
    if min(x.shape[2:]) >= 3:
        kernel = torch.tensor(_LAPLACIAN, dtype=torch.float64)[None, None]
        edges = functional.conv2d(luminance[:, None], kernel)
        sharpness = edges.var((1, 2, 3), correction=0)
    figures = {
        "brightness": luminance.mean((1, 2)),
        "contrast": luminance.std((1, 2), correction=0),
        "sharpness": sharpness,
    }
    for c in range(channels):
        figures[f"mean_{c}"] = x[:, c].mean((1, 2))
        figures[f"std_{c}"] = x[:, c].std((1, 2), correction=0)
    return {name: values.numpy() for name, values in figures.items()}
