"""Singular values of a layer's Jacobian: by how much it stretches each direction of its input."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from adaptkit import norms
from adaptkit.batches import device_of
from adaptkit.diagnostics.untouched import (
    as_in_training,
    check_has_weights,
    copied_buffers,
    same_randomness,
)
from adaptkit.errors import DataError, ModelError
from adaptkit.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def jacobian_singular_values(
    layer: nn.Module,
    x: Tensor,
    *,
    training: bool = False,
    chunk_size: int = 64,
    memory: int = 2**31,
) -> pd.DataFrame:
    """Return the singular values of a module's Jacobian at each sample.

        J_n = ∂ layer(x)_n / ∂ x_n,     shape (outputs, inputs) of one sample, both flattened

    Values near 1 let a gradient pass at its own size; Ioffe & Szegedy conjecture that batch norm
    keeps them there. Without unit where input and output have the same.

    By default the module is in eval mode, where samples do not see each other. In a training step
    batch norm couples them: `training` takes the whole batch for one function, with training flags,
    and so gives one Jacobian of (N·outputs, N·inputs), under sample 0. Its batch-norm layers then
    have singular values of 0, as no gradient passes along the batch's mean and scale.

    The module is only read: parameters, buffers, flags and torch's random state stay as they are.

    Args:
        layer: any module, a whole model too, that gives one tensor of (N, …) for one of (N, …).
        x: shape (N, …), floating.
        training: differentiate a training step on the whole batch.
        chunk_size: how many rows of a Jacobian are computed at once; each takes the memory of one
            backward pass of a sample (with `training`, of the batch).
        memory: bytes that one Jacobian may take.

    Returns:
        One row a sample and singular value: sample (from 0), index (from 0, the largest first) and
        singular_value, min(outputs, inputs) of them a sample, float64.

    Raises:
        DataError: `x` is not a floating tensor with a first dimension of samples, or has none.
        ModelError: the output is not a floating tensor of as many samples, a Jacobian would take
            more than `memory`, a batch norm without running statistics couples samples in eval
            mode, or a lazy layer has no weights yet.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.3 (the conjecture); Saxe et al. 2014,
    arXiv 1312.6120 (why 1 is good).

    >>> scale = nn.Linear(2, 2, bias=False)
    >>> scale.weight.data = torch.tensor([[0.0, 3.0], [-2.0, 0.0]])
    >>> jacobian_singular_values(scale, torch.ones(1, 2)).to_dict("list")
    {'sample': [0, 0], 'index': [0, 1], 'singular_value': [3.0, 2.0]}
    """
    layer = norms.unwrap(layer)
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise DataError(
            f"Expected x to be floating of shape (N, ...), not empty, got {x.dtype} "
            f"{tuple(x.shape)}"
        )
    if chunk_size < 1:
        raise ModelError(f"Expected chunk_size of 1 or more, got {chunk_size}")
    if not training:
        _check_samples_apart(layer)
    check_has_weights(layer)
    where = device_of(layer)
    x = x.detach().to(where)
    with contextlib.ExitStack() as undo:
        undo.enter_context((as_in_training if training else norms.evaluating)(layer))
        undo.enter_context(same_randomness(where))
        undo.enter_context(torch.inference_mode(False))  # which also turns gradients on
        parts = x.split(len(x) if training else 1)
        spectra = [_spectrum(layer, part, chunk_size, memory) for part in parts]
    sizes = [len(values) for values in spectra]
    return pd.DataFrame(
        {
            "sample": np.repeat(np.arange(len(spectra)), sizes),
            "index": np.concatenate([np.arange(size) for size in sizes]),
            "singular_value": np.concatenate(spectra),
        }
    )


def plot_singular_values(spectra: pd.DataFrame | Mapping[str, pd.DataFrame]) -> "Figure":
    """Draw singular values, the largest first, on a logarithmic axis.

    Each spectrum is a line, the median over its samples, in a band from their least to their
    largest; the horizontal axis is the share of singular values that are as large or larger. The
    grey line is 1. Values of 0 are not drawn.

    Args:
        spectra: what `jacobian_singular_values` returns, or several of them by their titles.

    Returns:
        A matplotlib figure.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    named = {"": spectra} if isinstance(spectra, pd.DataFrame) else spectra
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    axes.axhline(1, color="grey", linewidth=1)
    for title, frame in named.items():
        over = frame.groupby("index")["singular_value"]
        share = (np.arange(over.ngroups) + 1) / over.ngroups
        (line,) = axes.plot(share, over.median(), label=title)
        axes.fill_between(share, over.min(), over.max(), color=line.get_color(), alpha=0.2)
    axes.set(yscale="log", xlabel="share of singular values", ylabel="singular value")
    axes.grid(alpha=0.3)
    if any(named):
        axes.legend()
    return figure


def _check_samples_apart(layer: nn.Module) -> None:
    for name, module in layer.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"batch norm {name or 'itself'!r} has no running statistics, so that a sample's "
                f"output depends on the others: pass training=True for the batch's Jacobian"
            )


def _spectrum(layer: nn.Module, x: Tensor, chunk_size: int, memory: int) -> NDArray[np.float64]:
    jacobian = _jacobian(layer, x, chunk_size, memory)
    if jacobian.dtype in (torch.float16, torch.bfloat16):
        jacobian = jacobian.float()
    values: NDArray[np.float64] = torch.linalg.svdvals(jacobian).double().cpu().numpy()
    return values


def _jacobian(layer: nn.Module, x: Tensor, chunk_size: int, memory: int) -> Tensor:
    """Return ∂layer(x)/∂x of shape (outputs, inputs), some rows at a time."""
    x = x.clone().requires_grad_()
    # Not by torch.func.vjp, under which a layer may not update its buffers. Parameters are
    # detached, so that nothing is kept for gradients of theirs.
    values = copied_buffers(layer) | {name: p.detach() for name, p in layer.named_parameters()}
    # A copy goes in, since the first operation may work in place.
    y = functional_call(layer, values, (x.clone(),))
    if not isinstance(y, Tensor) or not y.is_floating_point() or y.shape[:1] != x.shape[:1]:
        came = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ModelError(
            f"Expected the output to be a floating tensor of {len(x)} samples, as x is, got {came}"
        )
    needed = y.numel() * x.numel() * x.element_size()
    if needed > memory:
        raise ModelError(
            f"a Jacobian of {y.numel()} outputs and {x.numel()} inputs takes {needed:,} bytes, "
            f"{memory:,} are allowed: give smaller samples, an inner layer, or memory="
        )
    jacobian = x.new_zeros(y.numel(), x.numel())
    if not y.requires_grad:  # it does not depend on x
        return jacobian
    for rows in torch.arange(y.numel(), device=x.device).split(chunk_size):
        basis = torch.zeros(len(rows), y.numel(), dtype=y.dtype, device=y.device)
        basis.scatter_(1, rows[:, None], 1)
        (gradients,) = torch.autograd.grad(
            y,
            x,
            basis.view(-1, *y.shape),
            retain_graph=True,
            is_grads_batched=True,
            materialize_grads=True,
        )
        jacobian[rows] = gradients.flatten(1)
    return jacobian
