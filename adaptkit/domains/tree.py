"""Several domains in one target, told apart by images' statistics at the first norm layer."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adaptkit.domains.cut import Cut, best_cut
from adaptkit.errors import EstimationError

APART = 8.0  # pooled standard deviations, beyond which two parts are two domains
FURTHER = 12.0  # beyond which two parts of a part are; classes in a part can lie 8 apart
MANY = 100  # images of such a part: among fewer, some cut of 10 axes looks that clear by chance
DEPTH = 3  # cuts on the way to a domain at most, so there are up to 8
SAMPLE = 1000  # images that cuts are looked for in


@dataclass(frozen=True)
class DomainTree:
    """Cuts by turns that lead each image to a domain.

    Args:
        weights: shape (S, D), float64, of each cut; none where there is one domain.
        thresholds: shape (S,), float64.
        after: of each cut, where images below and above go on: to a later cut of that number, or
            to the domain ~number.

    Raises:
        EstimationError: these are not the cuts of a tree.

    >>> tree = DomainTree(torch.eye(2).double(), torch.zeros(2).double(), ((~0, 1), (~1, ~2)))
    >>> tree.domains, tree.assign(torch.tensor([[-1.0, 5.0], [2.0, -3.0], [2.0, 3.0]])).tolist()
    (3, [0, 1, 2])
    """

    weights: Tensor
    thresholds: Tensor
    after: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        cuts = len(self.after)
        onward = sorted(place for pair in self.after for place in pair)
        if (
            self.weights.ndim != 2
            or len(self.weights) != cuts
            or self.thresholds.shape != (cuts,)
            or (cuts and onward != [*range(-cuts - 1, 0), *range(1, cuts)])
            or any(0 <= place <= k for k, pair in enumerate(self.after) for place in pair)
            or not bool(self.weights.isfinite().all() and self.thresholds.isfinite().all())
        ):
            raise EstimationError("Expected cuts that lead each image to one domain")

    @property
    def domains(self) -> int:
        """How many domains there are."""
        return len(self.after) + 1

    def assign(self, statistics: Tensor) -> Tensor:
        """Return the number of each image's domain from 0 on, shape (N,), int64.

        Args:
            statistics: shape (N, D), on the CPU.

        Raises:
            EstimationError: they are of another number of columns.
        """
        if self.after and statistics.shape[1] != self.weights.shape[1]:
            raise EstimationError(
                f"Expected {self.weights.shape[1]} statistics an image, got {statistics.shape[1]}"
            )
        place = torch.full((len(statistics),), 0 if self.after else ~0)
        for number, onward in enumerate(self.after):
            here = place == number
            score = statistics[here].double() @ self.weights[number]
            place[here] = torch.tensor(onward)[(score >= self.thresholds[number]).long()]
        return ~place


def split(statistics: Tensor) -> DomainTree:
    """Tell the domains in a target apart; how many there are is found too.

    Images are cut in two where the parts lie more than 8 pooled standard deviations apart (see
    `best_cut`), or where a part of 100 or more is of two that lie more than 12 apart; and each part
    again, up to three times. Of more than 1,000 images, 1,000 are looked at. Fewer than 40 images
    are one domain. Domains count from the one most like the source on, by the length of its mean
    statistics.

    Domains show at the first norm layer, where a change of light, contrast, noise or blur moves all
    of an image's statistics, more than classes do. A change that is small against how images differ
    anyhow is not seen, such as mild noise on textured images. Where a target has few classes they
    can be taken for domains.

    Args:
        statistics: shape (N, D), as `FirstLayer.statistics` gives them: in units of the source's
            standard deviations. Rows that are not finite are not looked at.

    >>> x = torch.randn(100, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> split(x).domains, split(torch.cat([x, x + 20])).domains
    (1, 2)
    """
    rows = statistics.double()
    rows = rows[rows.isfinite().all(1)]
    if len(rows) > SAMPLE:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:SAMPLE]]
    cuts = _Cuts()
    cuts.go_on(rows, DEPTH)
    if not cuts.found:
        return DomainTree(rows[:0], rows.new_zeros(0), ())
    weights = torch.stack([cut.weight for cut in cuts.found])
    thresholds = rows.new_tensor([cut.threshold for cut in cuts.found])
    tree = DomainTree(weights, thresholds, tuple((low, high) for low, high in cuts.after))
    numbers = tree.assign(rows)
    means = torch.stack([rows[numbers == n].mean(0) for n in range(tree.domains)])
    return _counted(tree, means.square().sum(1).argsort().tolist())


def _counted(tree: DomainTree, order: list[int]) -> DomainTree:
    """Return the tree with its domains numbered anew: `order` has their old numbers."""
    after = [[~order.index(~p) if p < 0 else p for p in pair] for pair in tree.after]
    return replace(tree, after=tuple((low, high) for low, high in after))


@dataclass
class _Cuts:
    """Cuts found so far, each before those that follow on it."""

    found: list[Cut] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    domains: int = 0

    def go_on(self, rows: Tensor, depth: int) -> int:
        """Cut these rows and what comes of them; return the number of the cut, or ~domain."""
        cut = best_cut(rows) if depth else None
        if cut is None or not _is_between_domains(cut, rows, depth):
            self.domains += 1
            return ~(self.domains - 1)
        number = len(self.found)
        self.found.append(cut)
        self.after.append([])
        self.after[number] += [self.go_on(part, depth - 1) for part in _parts(cut, rows)]
        return number


def _is_between_domains(cut: Cut, rows: Tensor, depth: int) -> bool:
    """Whether two parts lie apart, or one of them is of two that clearly do.

    Of three domains along a line, two make one part, so broad that the third is not far from it.
    """
    if cut.separation > APART or depth == 1:
        return cut.separation > APART
    further = (best_cut(part) for part in _parts(cut, rows) if len(part) >= MANY)
    return any(next_cut is not None and next_cut.separation > FURTHER for next_cut in further)


def _parts(cut: Cut, rows: Tensor) -> tuple[Tensor, Tensor]:
    above = cut.above(rows)
    return rows[~above], rows[above]
