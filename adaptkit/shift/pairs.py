"""Sums over all pairs of rows, in blocks, for the grouping that is and for permuted ones."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adaptkit.errors import DataError
from adaptkit.shift.result import blocks, wide

_ROWS = 512  # 8 MiB a block of 2,048 features


class PairSums(NamedTuple):
    """Sums of a function of distance over ordered pairs of two rows; each of shape (1 + B,).

    The first entry is of the grouping as given, the others of random ones of the same sizes.
    """

    within_x: Tensor
    between: Tensor
    within_y: Tensor


def pair_sums(
    x: Tensor,
    y: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    permutations: int = 0,
    seed: int = 0,
) -> PairSums:
    """Sum `function` of the squared distance over all pairs of rows but those of a row with itself.

    All groupings are summed in one pass: with g the 0/1 vector of a grouping and K the matrix of
    all pairs, gᵀKg is the sum within x. O((N + M)²·(D + B)) time; memory for two blocks of rows and
    one of pairs.

    Raises:
        DataError: `permutations` is below 0.
    """
    if permutations < 0:
        raise DataError(f"Expected permutations to be 0 or more, got {permutations}")
    groups = _groupings(len(x), len(x) + len(y), permutations, seed)
    pieces = [*blocks(x, _ROWS), *blocks(y, _ROWS)]
    starts = np.cumsum([0, *map(len, pieces)])
    within = torch.zeros(groups.shape[1], dtype=torch.float64)
    between, everything = torch.zeros_like(within), torch.zeros((), dtype=torch.float64)
    for i, piece in enumerate(pieces):
        # Distances about a point nearby lose fewer digits, wherever the sample lies.
        centre = wide(piece).mean(0)
        a = wide(piece) - centre
        of_a = groups[starts[i] : starts[i + 1]].double()
        for j in range(i, len(pieces)):
            b = a if i == j else wide(pieces[j]) - centre
            of_b = groups[starts[j] : starts[j + 1]].double()
            values = function(_squared_distances(a, b))
            if i == j:
                values.fill_diagonal_(0)
            to_b = values @ of_b
            both = (of_a * to_b).sum(0)
            twice = 1 if i == j else 2
            within += twice * both
            between += values.sum(1) @ of_a - both
            if i != j:
                between += to_b.sum(0) - both
            everything += twice * values.sum()
    return PairSums(within, between, everything - within - 2 * between)


def p_value(statistics: Tensor, terms: Tensor) -> float | None:
    """Return (k + 1) / (B + 1), k of B permuted statistics being as large as the first.

    Never 0, and valid at every B (Phipson & Smyth 2010); None without permutations.

    Args:
        statistics: shape (1 + B,), the first of the grouping as given.
        terms: what they are differences of. What differs by the rounding of these counts as equal,
            as it often is where rows repeat.
    """
    observed, permuted = statistics[0], statistics[1:]
    if not len(permuted):
        return None
    tolerance = 1e-12 * float(terms.abs().max())
    return (int((permuted >= observed - tolerance).sum()) + 1) / (len(permuted) + 1)


def _groupings(n: int, total: int, permutations: int, seed: int) -> Tensor:
    """Shape (total, 1 + permutations), bool: which rows belong to x."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.zeros(total, 1 + permutations, dtype=torch.bool)
    groups[:n, 0] = True
    for column in range(1, 1 + permutations):
        groups[torch.randperm(total, generator=generator)[:n], column] = True
    return groups


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (
        torch.addmm(b.square().sum(1)[None, :] + a.square().sum(1)[:, None], a, b.T, alpha=-2)
    ).clamp_(min=0)
