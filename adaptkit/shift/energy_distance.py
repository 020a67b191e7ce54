"""Energy distance: how much farther apart rows of two samples lie than rows of one."""

from adaptkit.shift.pairs import p_value, pair_sums
from adaptkit.shift.result import Sample, ShiftResult, checked


def energy(x: Sample, y: Sample, *, permutations: int = 0, seed: int = 0) -> ShiftResult:
    """Return the energy distance of two samples, with means over all pairs.

        2·E|X − Y| − E|X − X'| − E|Y − Y'|

    In the unit of the features; 0 or more, and 0 in the limit only for equal distributions. For
    samples of one distribution it is above 0 in expectation (by E|X − X'|·(1/N + 1/M)): judge it by
    its p-value. Without a bandwidth to choose, unlike `mmd2`. scipy's `energy_distance` is the root
    of this for one feature.

    Args:
        x: shape (N, D); an array or a tensor.
        y: shape (M, D).
        permutations: how many random regroupings the p-value rests on; 0 for none.
        seed: decides these.

    Returns:
        ShiftResult; p_value = (k + 1) / (permutations + 1).

    Raises:
        DataError: the samples are not two finite tables of as many features, or `permutations` is
            below 0.

    Computed in float64 and in blocks: O((N + M)²·(D + permutations)) time.

    Source: Székely & Rizzo 2013, J. Stat. Plan. Inference 143.

    >>> float(energy([[0.0], [0.0]], [[3.0], [3.0]]))
    6.0
    """
    a, b = checked(x, y, least=1)
    sums = pair_sums(a, b, lambda squared: squared.sqrt_(), permutations=permutations, seed=seed)
    n, m = len(a), len(b)
    across = 2 * sums.between / (n * m)
    values = across - sums.within_x / n**2 - sums.within_y / m**2
    return ShiftResult(max(float(values[0]), 0.0), p_value(values, across), n, m)
