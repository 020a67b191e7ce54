"""What adapting changes on 5,640 drawn targets; the guard's forecasts learn of 4,200 of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from adaptkit import Calibration
from adaptkit.estimation.trial import Trial
from adaptkit.guard.calibrated import LEAST as LEAST_CALIBRATED
from adaptkit.guard.calibrated import calibrated_views, calibrated_ways
from adaptkit.guard.evidence import calibrated_evidence, evidence
from adaptkit.guard.fixed_point import fixed_point
from adaptkit.guard.forecast import Forecast
from adaptkit.guard.typicality import severity
from adaptkit.guard.uncalibrated import CAUTION, NEAR, TEN, views_of
from adaptkit.guard.uncalibrated import LEAST as LEAST_UNCALIBRATED
from adaptkit.guard.view import View, logits_alone
from adaptkit.guard.ways import Source
from adaptkit.plotting import new_figure
from benchmarks import drawn, harness
from benchmarks.guard import CORRUPTIONS, INVERT, Floats, Job, figures_of
from benchmarks.harness import Row
from benchmarks.images import CLASSES, MissingDataError
from benchmarks.label_shift import CLEAN, of_shares
from benchmarks.machine import described, device
from benchmarks.methods import MEMORY, known
from benchmarks.nets import IBN, PLAIN, QUICK_STEPS, SMALL, STEPS, trained
from benchmarks.spoiling import corrupt, installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# None of what the guard is reported on. The forecasts are learned of the first alone.
IMAGES = ("MNIST", "digits", *drawn.NAMES)
EVERY = (*IMAGES, *drawn.FEW)
SIZES = (16, 32, 64, 128, 256, 1024)
SEVERITIES = (2, 3, 4, 5)
PRESENT = (0.0, 0.2, 0.3, 0.5, 0.7, 1.0)  # of the classes, one at least
DIRICHLET = 0.5
OF_TWO_OR_THREE = (0.5, 2.0)  # Dirichlet likewise
FEWEST = 24
FOUR = 4
OF_FEW, ALIKE, OF_MORE = "harm, few, %", "harm, ten, %", "harm, more, %"
OF_FOUR = "harm, 4 to 9, %"
LIMITS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13, 0.15)
TREES, LEAF, FEATURES = 60, 10, 0.7
WAYS = {False: ("all", "early"), True: ("all", "early", "corrected")}  # by whether calibrated
LEAST = {False: LEAST_UNCALIBRATED, True: LEAST_CALIBRATED}
ASKED = {False: 7.0, True: 3.0}  # harm at most, % of targets
RESULT = Path(__file__).parent / "results" / "forecast.csv"


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Meet 30 targets with each of 188 nets, seven for each of twenty sets of images.

    And two for each of two or three classes of twelve of them.
    """
    if quick:
        sets = ("digits", "three shapes", "two of digits")
        jobs = [Job(name, SMALL, 0, QUICK_STEPS, 6) for name in sets]
    else:
        _check_images()
        jobs = [
            Job(images, architecture, seed, STEPS, 30)
            for seed in range(3)
            for images in IMAGES
            for architecture in ((PLAIN, SMALL) if seed else (PLAIN, SMALL, IBN))
        ]
        jobs += [Job(name, net, 0, STEPS, 30) for name in drawn.FEW for net in (PLAIN, SMALL)]
    frame = pd.DataFrame(harness.every(jobs, one)).assign(**described())
    return frame, summary(frame)


def _check_images() -> None:
    for name in IMAGES:
        try:
            drawn.named(name)
        except MissingDataError as error:
            raise MissingDataError(f"the forecast is learned on {name}, and {error}") from None


def one(job: Job) -> list[Row]:
    """Train one net; note the evidence of each target, and what each way changes."""
    images = drawn.named(job.images)
    source = trained(job.architecture, images, job.seed, job.steps)
    rng = np.random.default_rng([EVERY.index(job.images), job.seed, len(job.architecture)])
    found = []
    for number in range(job.targets):
        corruption = str(rng.choice([CLEAN, INVERT, *installed()]))
        shares = (_shares_of_few if job.images in drawn.FEW else _shares)(images.classes, rng)
        size = int(rng.choice(SIZES))
        level = 0 if corruption in (CLEAN, INVERT) else int(rng.choice(SEVERITIES))
        index = of_shares(images.test_y, shares, size, rng)
        x, y = harness.taken(images, index)
        spoilt = 1 - x if corruption == INVERT else corrupt(x, corruption, level, seed=number)
        about = {
            "case": job.images,
            "method": "every way",
            "seed": job.seed,
            "architecture": job.architecture,
            "corruption": corruption,
            "level": level,
            "learned": job.images in IMAGES,
            "classes": images.classes,
            "present": int((shares > 0).sum()),
            "even": bool((shares == 1 / images.classes).all()),
            "samples": len(x),
        }
        batches = images.standardised(spoilt).to(device()).split(harness.BATCH)
        trial = Trial(source.model, batches, samples="all", memory=MEMORY, keep=logits_alone)
        found.append({**about, **_changes(trial, known(source), y.numpy())})
    return found


def _shares(classes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    kind = rng.integers(len(PRESENT) + 1)
    if kind == len(PRESENT):
        return rng.dirichlet([DIRICHLET] * classes)
    count = max(1, round(PRESENT[kind] * classes))
    shares = np.zeros(classes)
    shares[rng.permutation(classes)[:count]] = 1 / count
    return shares


def _shares_of_few(classes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    alike, alone = np.full(classes, 1 / classes), rng.permutation(np.eye(classes)[0])
    mixed = [rng.dirichlet([alpha] * classes) for alpha in OF_TWO_OR_THREE]
    return (alike, alone, *mixed)[rng.integers(2 + len(mixed))]


def _changes(trial: Trial, own: Calibration, labels: NDArray[np.int64]) -> Row:
    source = Source().run(trial)
    point = fixed_point(trial, own.moments)
    views = calibrated_views(trial, source, point)
    shift = severity(source.seen.plain, trial.stored)

    def accuracy(view: View) -> float:
        return float((view.predictions == labels).mean())

    row: Row = {"before": accuracy(source), "full": accuracy(views["full"])}
    every = calibrated_ways(source, point)
    row |= {way: accuracy(which.run(trial)) for way, (which, _) in every.items()}
    row |= evidence(views_of(trial, source), shift)
    return row | calibrated_evidence(views, shift, own)


def names(frame: pd.DataFrame, calibrated: bool) -> list[str]:
    """Return which columns are evidence."""
    every = list(map(str, frame.columns))
    last = "corrected far" if calibrated else "early classes"
    return every[every.index("log samples") : every.index(last) + 1]


def learned_of(frame: pd.DataFrame, calibrated: bool, told: Sequence[str] = ()) -> Forecast:
    """Return a forecast that is learned of these targets, but those that are there for limits.

    Args:
        frame: a row a target.
        calibrated: whether there is a calibration to go by.
        told: columns that it goes by too.
    """
    inputs, outputs = [*names(frame, calibrated), *told], WAYS[calibrated]
    frame = frame[frame["learned"]]
    changes = frame[list(outputs)].sub(frame["before"], axis=0)
    forest = ExtraTreesRegressor(
        TREES, min_samples_leaf=LEAF, max_features=FEATURES, random_state=0
    ).fit(frame[inputs].to_numpy(np.float32), changes.to_numpy())
    trees = [tree.tree_ for tree in forest.estimators_]
    sizes = [tree.node_count for tree in trees]
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    leaf = np.concatenate([tree.children_left for tree in trees]) < 0
    own = np.arange(len(leaf))
    left, right = (
        np.where(leaf, own, np.concatenate([getattr(tree, side) + root for tree, root in along]))
        for side, along in (
            (side, list(zip(trees, roots, strict=True)))
            for side in ("children_left", "children_right")
        )
    )
    values = np.concatenate([tree.value[:, :, 0] for tree in trees])
    return Forecast(
        tuple(inputs),
        outputs,
        roots,
        np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])).astype(np.int32),
        np.where(leaf, 0, np.concatenate([tree.threshold for tree in trees])).astype(np.float32),
        left.astype(np.int32),
        right.astype(np.int32),
        np.where(leaf[:, None], values, 0).astype(np.float32),
    )


def held_out(frame: pd.DataFrame, calibrated: bool, told: Sequence[str] = ()) -> pd.DataFrame:
    """Return each way's cautious forecast, learned of what shows other things than the target."""
    parts, things = [], frame["case"].str.split().str[-1]  # "scattered letters" are letters
    for name, own in frame.groupby(things, sort=False):
        forecast = learned_of(frame[things != name], calibrated, told)
        trees = forecast.each_tree(own[list(forecast.names)].to_numpy())
        cautious = trees.mean(1) - CAUTION * trees.std(1)
        parts.append(pd.DataFrame(cautious, own.index, list(forecast.ways)))
    return pd.concat(parts).loc[frame.index]


def _best(frame: pd.DataFrame, told: pd.DataFrame) -> tuple["pd.Series[float]", Floats]:
    """Return the accuracy by the way that is forecast to be best, and its forecast."""
    best = told.assign(all=told["all"] + NEAR).to_numpy().argmax(1)
    each = np.arange(len(frame))
    gained = pd.Series(frame[list(told.columns)].to_numpy(float)[each, best], frame.index)
    return gained, told.to_numpy(float)[each, best]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what comes of a forecast at each limit, each set of images being new to it.

    As in the benchmark `guard`: harm is an accuracy more than a point below the source's, regret is
    against the better of source and plain AdaBN, kept is of plain AdaBN's gain on even corrupted
    targets, all of the sets that the forecasts are learned on. The limit for ten classes is chosen
    by the harm of such targets as that benchmark has: of ten classes, of 24 images or more, spoilt
    as there; those for fewer and for more by the harm of all such targets.
    """
    whole, few, more = frame["learned"], frame["classes"] < TEN, frame["classes"] > TEN
    alike = whole & (frame["classes"] == CLASSES) & (frame["samples"] >= FEWEST)
    alike &= frame["corruption"].isin(CORRUPTIONS)

    def figures_of(after: "pd.Series[float]") -> Row:
        parts = {
            OF_FEW: few,
            OF_FOUR: few & (frame["classes"] >= FOUR),
            ALIKE: alike,
            OF_MORE: more,
        }
        harm = {name: _figures(frame[part], after[part])["harm, %"] for name, part in parts.items()}
        return _figures(frame[whole], after[whole]) | harm

    no_limit: Row = {"adapts above, points": None, "the guard's of": ""}
    found = [
        {"forecast": f"none: {name}", **no_limit, **figures_of(frame[column])}
        for name, column in (("source", "before"), ("AdaBN", "full"))
    ]
    for calibrated, least in LEAST.items():
        gained, expected = _best(frame, held_out(frame, calibrated))
        chosen = {
            limit: ", ".join(name for name, at in least._asdict().items() if at == limit)
            for limit in least
        }
        for limit in LIMITS:
            after = frame["before"].where(expected <= limit, gained)
            row: Row = {"forecast": "calibrated" if calibrated else "uncalibrated"}
            row["adapts above, points"] = 100 * limit
            row["the guard's of"] = chosen.get(limit, "")
            found.append(row | figures_of(after))
    return pd.DataFrame(found)


def bound(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what could be kept by a forecast that is told the mix of classes, as only labels tell.

    At the lowest limit at which no more of all targets are harmed than was asked.
    """
    frame = frame[frame["learned"]]
    mix = {"present": frame["present"] / frame["classes"], "alike": frame["even"].astype(float)}
    frame, found = frame.assign(**mix), []
    for calibrated, asked in ASKED.items():
        gained, expected = _best(frame, held_out(frame, calibrated, tuple(mix)))
        figures_at = (
            {"adapts above, points": 100 * limit}
            | _figures(frame, frame["before"].where(expected <= limit, gained))
            for limit in np.arange(0, 0.5, 0.0025)
        )
        row: Row = {"told the mix": "calibrated" if calibrated else "uncalibrated"}
        found.append(row | next(each for each in figures_at if each["harm, %"] <= asked))
    return pd.DataFrame(found)


def _figures(frame: pd.DataFrame, after: "pd.Series[float]") -> Row:
    even = frame["even"] & (frame["corruption"] != CLEAN)
    before, full = frame["before"].to_numpy(np.float64), frame["full"].to_numpy(np.float64)
    return figures_of(before, np.asarray(after, np.float64), full, even.to_numpy(bool))


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw what a way changed against what was forecast, each set of images being new to it."""
    frame = frame[frame["learned"]]
    told = held_out(frame, calibrated=True)
    drawn_ = new_figure(12, 4.5)
    every = drawn_.subplots(1, 3, sharex=True, sharey=True)
    for axes, way in zip(every, told.columns, strict=True):
        change = 100 * (frame[way] - frame["before"])
        axes.scatter(100 * told[way], change, s=4, alpha=0.4, linewidths=0)
        axes.axvline(100 * LEAST[True].ten, color="grey", linewidth=1)
        axes.axhline(0, color="grey", linewidth=1)
        axes.set(title=way, xlabel="forecast, cautiously, points")
    drawn_.axes[0].set_ylabel("change of accuracy, points")
    return drawn_
