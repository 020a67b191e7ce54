"""What got better or worse beyond noise between two runs of one benchmark.

`python -m benchmarks.compare OLD.csv NEW.csv`, or this file by its path.
"""

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pandas as pd
from scipy import stats

WIDTH = 80
LEVEL = 0.05  # of false discoveries among what is called worse or better
ENOUGH = 3  # repeats of a timing in each file; fewer get no verdict

# What each share is divided by to lie in 0..1. `before` counts only where there is no `after`.
_SHARES = {
    **dict.fromkeys(("after", "before"), 1.0),
    **dict.fromkeys(("source %", "fp32 %", "bf16 %", "agreement %"), 100.0),
}
_COSTS = ("seconds", "peak MiB")
_COUNTS = ("samples", "n", "images")  # how many images were scored; the first that a file has
_REPEATS = ("seed", "round")
_MACHINE = ("processor", "isa", "device", "threads", "torch")
_DESCRIBES = {*_MACHINE, "adaptkit", "torchvision", "python", "cores", "date", "command"}
# Not `images`, which is a factor too: what was run on more of them is another group.
_MEASURED = {*_SHARES, *_COSTS, "samples", "n", "failed", "user s", "system s"}
_MEASURED |= {"operations", "all-reduces", "bytes all-reduced", "bytes handed", "bytes a sample"}
_MEASURED_TOO = re.compile(r"change|ci_low|ci_high|certificate.*|singular_.*|.* %")

_FRACTION = re.compile(r"-?(\d*)\.(\d+)(e[-+]?\d+)?")

Group = tuple[str, ...]
Both = Mapping[Group, tuple[pd.DataFrame, pd.DataFrame]]  # the rows in OLD and in NEW


class Pair(NamedTuple):
    """One share of one group in both files, an element a matched repeat; counts may be NaN."""

    old: np.ndarray
    new: np.ndarray
    old_count: np.ndarray
    new_count: np.ndarray


class Outcome(NamedTuple):
    """A mean difference, the half width of its 95% interval, and its two-sided p-value.

    The last two are NaN where nothing says how large the noise is.
    """

    difference: float
    noise: float
    p: float


class Finding(NamedTuple):
    """One measure of one group in both files."""

    group: Group
    kind: int  # failures, shares, costs: the order in which they are shown
    gain: float  # above 0 is better
    p: float
    text: str
    equal: bool = False  # to the last digit
    matters: bool = True  # large enough to be called a change


@dataclass
class Comparison:
    """Everything that the report says."""

    keys: list[str]
    groups: list[Group]
    varying: list[int]
    worse: list[Finding] = field(default_factory=list)
    better: list[Finding] = field(default_factory=list)
    unknown: list[Finding] = field(default_factory=list)
    noise: set[Group] = field(default_factory=set)
    equal: set[Group] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)


def share_tests(pairs: Sequence[Pair]) -> list[Outcome]:
    """Test whether the mean over matched repeats of new - old is zero, for each pair.

    The standard error is the larger of two. One is binomial, from the images scored in all the
    matched repeats, each accuracy smoothed by a right and a wrong image more (Agresti and Caffo),
    so that 0 and 1 have noise too. It takes the two files' images as unrelated. They are the same,
    and their difficulty cancels in the difference, so this is conservative. The other is how much
    the differences vary between repeats.

    Two or three repeats say little of their own variance: t with one degree of freedom flags
    nothing, and the normal flags far too much. So the binomial variance is first multiplied by
    what all groups together say of it, the median ratio of variance between repeats to binomial
    (at least 1), with the degrees of freedom of all groups; a group that varies more than that
    slides from these to its own, as its own variance comes to dominate. A test simulates this.
    """
    parts = [_variances(pair) for pair in pairs]
    ratios = [
        (part.between / part.binomial) / (stats.chi2.median(part.freedom) / part.freedom)
        for part in parts
        if part.freedom and part.binomial > 0
    ]
    factor = max(1.0, float(np.median(ratios))) if ratios else 1.0
    pooled = sum(part.freedom for part in parts if part.binomial > 0) if factor > 1 else np.inf
    return [
        _share_test(pair, part, factor, pooled) for pair, part in zip(pairs, parts, strict=True)
    ]


class _Variances(NamedTuple):
    binomial: float  # of the mean difference; NaN where the images are not counted
    between: float  # the same from the repeats; 0 where there is one
    freedom: int


def _variances(pair: Pair) -> _Variances:
    repeats = len(pair.old)
    both = _binomial(pair.old, pair.old_count) + _binomial(pair.new, pair.new_count)
    between = float(np.var(pair.new - pair.old, ddof=1)) / repeats if repeats > 1 else 0.0
    return _Variances(both / repeats**2, between, repeats - 1)


def _binomial(share: np.ndarray, count: np.ndarray) -> float:
    smooth = (share * count + 1) / (count + 2)
    return float((smooth * (1 - smooth) / count).sum())


def _share_test(pair: Pair, part: _Variances, factor: float, pooled: float) -> Outcome:
    difference = float(np.mean(pair.new - pair.old))
    if np.array_equal(pair.old, pair.new):
        return Outcome(0.0, 0.0, 1.0)
    base = 0.0 if np.isnan(part.binomial) else factor * part.binomial
    variance = max(base, part.between)
    if variance < 1e-20:  # No count, and no spread between repeats beyond rounding.
        return Outcome(difference, np.nan, np.nan)
    excess = variance - base
    own = part.freedom * (variance / excess) ** 2 if excess > 0 else np.inf
    freedom = min(own, pooled) if base else own
    error = float(np.sqrt(variance))
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    return Outcome(difference, float(stats.t.isf(0.025, freedom)) * error, p)


def cost_test(old: np.ndarray, new: np.ndarray) -> float:
    """Return the two-sided p-value of Welch's t-test on logarithms of seconds or MiB.

    Not a rank test: the exact one cannot go below p = 0.1 at three rounds a side, nor 0.008 at
    five, which is never enough among the dozen timings of one file. An outlier widens the variance,
    so it hides a change rather than making one up.
    """
    a, b = np.log(old), np.log(new)
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    difference, variance = abs(float(a.mean() - b.mean())), float(parts.sum())
    if variance < 1e-24:  # Peaks can agree to the digit.
        return 1.0 if difference < 1e-12 else 0.0
    freedom = variance**2 / float((parts**2 / [len(a) - 1, len(b) - 1]).sum())
    return 2 * float(stats.t.sf(difference / np.sqrt(variance), freedom))


def compare(old: pd.DataFrame, new: pd.DataFrame, tolerance: float = 0.1) -> Comparison:
    """Compare two runs, read as text, group by group.

    Shares and costs are two families of tests, so that skipping timings changes no other verdict.
    Rounds of one run don't show how a machine differs from day to day: a cost has to leave
    1 ± `tolerance` as well.
    """
    shared = [name for name in map(str, old.columns) if _is_key(name) and name in new]
    guessed = [name for name in shared if _is_fine(old[name]) or _is_fine(new[name])]
    keys = [name for name in shared if name not in guessed]
    if not keys:
        raise click.ClickException("OLD and NEW have no column in common that names a group")
    measures = [name for name in (*_SHARES, *_COSTS) if name in old and name in new]
    if not measures:
        known = ", ".join((*_SHARES, *_COSTS))
        raise click.ClickException(f"OLD and NEW have no measured column in common, of: {known}")
    old, new = _typed("OLD", old, measures), _typed("NEW", new, measures)
    olds, news = _grouped(old, keys), _grouped(new, keys)
    both = {group: (olds[group], news[group]) for group in olds if group in news}
    if not both:
        raise click.ClickException(f"No group is in both OLD and NEW{_unshared(old, new, keys)}")
    everything = {*olds, *news}
    varying = [i for i in range(len(keys)) if len({group[i] for group in everything}) > 1]
    found = Comparison(keys, list(both), varying or list(range(len(keys))))
    found.notes += _ignored(old, new)
    if guessed:
        found.notes.append(f"Taken as measured, so they tell no groups apart: {', '.join(guessed)}")
    for name, ones in (("OLD", olds), ("NEW", news)):
        found.notes += _named(found, f"Only in {name}", [g for g in ones if g not in both])
    repeats = [name for name in _REPEATS if name in old and name in new]
    _judge(found, _failures(both, repeats))
    _judge(found, _shares(found, both, repeats, [name for name in measures if name in _SHARES]))
    _judge(found, _costs(found, both, [name for name in measures if name in _COSTS], tolerance))
    return found


def _is_key(name: str) -> bool:
    known = name in _MEASURED or name in _DESCRIBES or name in _REPEATS
    return not known and not _MEASURED_TOO.fullmatch(name)


def _is_fine(column: pd.Series) -> bool:
    """Return whether a number is finer than a factor's would be: a fraction of over 3 digits."""
    matches = map(_FRACTION.fullmatch, column.unique())
    return any(len((match[1] + match[2]).strip("0")) > 3 for match in matches if match)


def _typed(file: str, frame: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return a copy with measures as numbers, NaN where a row failed, and keys written alike."""
    frame = frame.copy()
    if "failed" not in frame:
        frame["failed"] = ""
    frame["failed"] = frame["failed"].str.strip()
    for name in map(str, frame.columns):
        number = pd.to_numeric(frame[name], errors="coerce")
        if name in measures:
            wrong = frame[name][number.isna() & ~frame[name].str.lower().isin(["", "nan"])]
            if len(wrong):
                raise click.ClickException(f"{file} has {name} = {_clean(wrong.iloc[0])!r}")
            full = _SHARES.get(name, np.inf)
            # A peak can lie below what was counted before by what the system had not yet counted.
            if name != "peak MiB" and not number.dropna().between(0, full).all():
                raise click.ClickException(f"{file} has {name} outside of 0..{full:g}")
            scaled = number / full if name in _SHARES else number
            frame[name] = scaled.where(frame["failed"] == "")
        elif _is_key(name) or name in _REPEATS:  # 1 is 1.0 where others are missing.
            frame[name] = number.map("{:.12g}".format).where(number.notna(), frame[name])
    return frame


def _grouped(frame: pd.DataFrame, keys: list[str]) -> dict[Group, pd.DataFrame]:
    return {tuple(map(str, key)): rows for key, rows in frame.groupby(keys, sort=False)}


def _unshared(old: pd.DataFrame, new: pd.DataFrame, keys: Sequence[str]) -> str:
    names = [name for name in keys if not set(old[name]) & set(new[name])]
    return f": no value in common of {', '.join(names)} (see --ignore)" if names else ""


def _ignored(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    names = [
        f"{name} ({file})"
        for file, ones, others in (("OLD", old, new), ("NEW", new, old))
        for name in map(str, ones.columns)
        if _is_key(name) and name not in others
    ]
    return [f"Ignored, as one file only has it: {', '.join(names)}"] if names else []


def _named(found: Comparison, what: str, groups: Sequence[Group]) -> list[str]:
    if not groups:
        return []
    some = "; ".join(_label(found, group, 60) for group in groups[:3])
    return [f"{what}: {_many(groups)}, {'such as ' if len(groups) > 3 else ''}{some}"]


def _many(groups: Collection[Group]) -> str:
    return f"{len(groups)} group{'' if len(groups) == 1 else 's'}"


def _failures(both: Both, repeats: list[str]) -> list[Finding]:
    """Find failures that came or went, in the repeats that both files have."""
    found = []
    for group, pair in both.items():
        if all((rows["failed"] == "").all() for rows in pair):
            continue
        old, new = (_messages(rows, repeats) for rows in pair)
        if old.keys().isdisjoint(new):  # Each file's runs are one then: did any fail?
            old, new = (_messages(rows, []) for rows in pair)
        matched = [key for key in old if key in new]
        counts = " to ".join(str(sum(side[key] != "" for key in matched)) for side in (old, new))
        for gain, here, there in ((-1.0, new, old), (1.0, old, new)):
            messages = [here[key] for key in matched if here[key] and not there[key]]
            if messages:
                said = _shortened(_clean(messages[0]), 24)
                text = f"failed {counts} of {len(matched)}: {said}"
                found.append(Finding(group, 0, gain, 0.0, text))
    return found


def _messages(rows: pd.DataFrame, repeats: list[str]) -> dict[Group, str]:
    return {key: max(part["failed"]) for key, part in _by_repeat(rows, repeats).items()}


def _by_repeat(rows: pd.DataFrame, repeats: list[str]) -> dict[Group, pd.DataFrame]:
    return _grouped(rows, repeats) if repeats else {(): rows} if len(rows) else {}


def _shares(
    found: Comparison, both: Both, repeats: list[str], measures: Sequence[str]
) -> list[Finding]:
    names: list[tuple[Group, str]] = []
    pairs: list[Pair] = []
    unmatched: set[Group] = set()
    averaged: set[Group] = set()
    for group, (old, new) in both.items():
        for name in measures:
            if name == "before" and "after" in measures and _any(old, new, "after"):
                continue
            one, other = (_by_repeat(rows[rows[name].notna()], repeats) for rows in (old, new))
            matched = [key for key in one if key in other]
            if not matched:
                if (one or other) and all((rows["failed"] == "").all() for rows in (old, new)):
                    unmatched.add(group)
                continue
            if any(len(side[key]) > 1 for side in (one, other) for key in matched):
                averaged.add(group)
            names.append((group, name))
            pairs.append(
                Pair(
                    *(np.array([float(s[k][name].mean()) for k in matched]) for s in (one, other)),
                    *(np.array([_count(s[k]) for k in matched]) for s in (one, other)),
                )
            )
    found.notes += _named(found, "Accuracy in no repeat that both files have", sorted(unmatched))
    found.notes += _named(found, "Several rows a repeat, averaged", sorted(averaged))
    results = []
    for (group, name), pair, outcome in zip(names, pairs, share_tests(pairs), strict=True):
        shares = " to ".join(f"{100 * float(side.mean()):.2f}" for side in (pair.old, pair.new))
        noise = "" if np.isnan(outcome.noise) else f" ±{100 * outcome.noise:.2f}"
        text = f"{name.removesuffix(' %')} {shares} ({100 * outcome.difference:+.2f}{noise})"
        equal = np.array_equal(pair.old, pair.new)
        results.append(Finding(group, 1, outcome.difference, outcome.p, text, equal))
    return results


def _any(old: pd.DataFrame, new: pd.DataFrame, name: str) -> bool:
    return bool(old[name].notna().any() or new[name].notna().any())


def _count(rows: pd.DataFrame) -> float:
    """Return how many images a repeat scored; rows of one repeat are taken to share them."""
    name = next((name for name in _COUNTS if name in rows), None)
    count = float(pd.to_numeric(rows[name], errors="coerce").mean()) if name else np.nan
    return count if count > 0 else np.nan


def _costs(
    found: Comparison, both: Both, measures: Sequence[str], tolerance: float
) -> list[Finding]:
    results, few = [], 0
    elsewhere: set[Group] = set()
    differing: set[str] = set()
    for group, (old, new) in both.items():
        names = [name for name in measures if _any(old, new, name)]
        if names and (different := _differing(old, new)):
            elsewhere.add(group)
            differing |= different
            continue
        for name in names:
            before, after = (_timings(rows, name) for rows in (old, new))
            if min(len(before), len(after)) < ENOUGH:
                few += 1
                continue
            a, b = float(np.median(before)), float(np.median(after))
            text = f"{name} {_figure(a)} to {_figure(b)} (x{b / a:.2f})"
            equal = np.array_equal(np.sort(before), np.sort(after))
            p = 1.0 if equal else cost_test(before, after)
            gain, matters = float(np.log(a / b)), abs(b / a - 1) > tolerance
            results.append(Finding(group, 2, gain, p, text, equal, matters))
    if elsewhere:
        names = [name for name in _MACHINE if name in differing]
        part = "" if len(elsewhere) == len(both) else f" of {_many(elsewhere)}"
        found.notes.append(f"Machines differ in {', '.join(names)}: timings{part} skipped")
    if few:
        have = "timing has" if few == 1 else "timings have"
        found.footnotes.append(f"{few} {have} too few repeats to judge")
    return results


def _differing(old: pd.DataFrame, new: pd.DataFrame) -> set[str]:
    """Return what differs of the machines; what one of them doesn't say is taken to be the same."""
    different = set()
    for name in _MACHINE:
        if name in old and name in new:
            values = [{value for value in rows[name] if value} for rows in (old, new)]
            if all(values) and values[0] != values[1]:
                different.add(name)
    return different


def _timings(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return a number a repeat; rows that no column tells apart are repeats, 0 is missing."""
    repeats = [column for column in _REPEATS if column in rows]
    number = rows[name].where(rows[name].between(0, np.inf, inclusive="neither"))
    each = number.groupby([rows[column] for column in repeats]).mean() if repeats else number
    return np.asarray(each.dropna(), dtype=float)


def _judge(found: Comparison, findings: Sequence[Finding]) -> None:
    known = [finding for finding in findings if not np.isnan(finding.p)]
    found.unknown += [finding for finding in findings if np.isnan(finding.p)]
    adjusted = stats.false_discovery_control([finding.p for finding in known]) if known else []
    for finding, p in zip(known, adjusted, strict=True):
        if p <= LEVEL and finding.matters and finding.gain:
            (found.better if finding.gain > 0 else found.worse).append(finding)
        else:
            (found.equal if finding.equal else found.noise).add(finding.group)


def report(found: Comparison) -> str:
    """Return the comparison as plain text of at most 80 columns."""
    lines = [*found.notes]
    lines.append(f"Groups by {', '.join(found.keys[i] for i in found.varying)}")
    if any(finding.kind == 1 for finding in (*found.worse, *found.better, *found.unknown)):
        lines.append("Accuracies are in %; ± is the half width of a 95% interval")
    lines = [line for text in lines for line in _filled(text)]
    for title, findings in (
        ("Worse", found.worse),
        ("Better", found.better),
        ("Changed, noise unknown", found.unknown),
    ):
        if findings:
            ordered = sorted(findings, key=lambda finding: (finding.kind, -abs(finding.gain)))
            wide = max(len(finding.text) for finding in ordered)
            lines += ["", title]
            for finding in ordered:
                label = _label(found, finding.group, WIDTH - wide - 4)
                lines.append(f"  {finding.text:{wide}}  {label}")
    lines += ["", *(line for text in (*found.footnotes, _summary(found)) for line in _filled(text))]
    return "\n".join(lines)


def _summary(found: Comparison) -> str:
    worse, better, unknown = (
        {finding.group for finding in findings}
        for findings in (found.worse, found.better, found.unknown)
    )
    changed = worse | better | unknown
    quiet = (found.noise | found.equal) - changed
    both = f" ({len(worse & better)} of them both)" if worse & better else ""
    equal = len(quiet - found.noise)
    parts = [
        f"{len(worse)} worse",
        f"{len(better)} better{both}",
        f"{len(quiet)} within noise" + (f" ({equal} equal)" if equal else ""),
    ]
    if unknown - worse - better:
        parts.append(f"{len(unknown - worse - better)} changed, noise unknown")
    if rest := len(set(found.groups) - changed - quiet):
        parts.append(f"{rest} not judged")
    return f"{_many(found.groups)} compared: {', '.join(parts)}"


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _label(found: Comparison, group: Group, room: int) -> str:
    """Name a group by what tells it from others, the longest parts shortened until it fits."""
    parts = [_clean(group[i]) or "-" for i in found.varying]
    while len(label := ", ".join(parts)) > room:
        longest = max(range(len(parts)), key=lambda i: len(parts[i]))
        if len(parts[longest]) <= 3:
            return _shortened(label, room)
        parts[longest] = _shortened(parts[longest], len(parts[longest]) - 1)
    return label


def _shortened(text: str, room: int) -> str:
    """Leave out the middle: names often differ at one end."""
    if len(text) <= room:
        return text
    text = text.replace("…", "")
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def _clean(text: str) -> str:
    """Return one line, with nothing that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def read(path: Path) -> pd.DataFrame:
    """Return a CSV file as text: pandas would take a method named None for a missing one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise click.ClickException(f"{path} is not a CSV file: {_clean(str(error))}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise click.ClickException(f"{path} is not a CSV file: rows are longer than its first line")
    if frame.empty:
        raise click.ClickException(f"{path} has no rows")
    return frame.fillna("")


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="How much of a timing or a peak may change unremarked.",
)
@click.option(
    "--ignore", multiple=True, metavar="COLUMN", help="A column to leave out; repeatable."
)
@click.option("--fail-on-worse", is_flag=True, help="Exit with 1 if anything is worse.")
def main(
    old: Path, new: Path, tolerance: float, ignore: tuple[str, ...], fail_on_worse: bool
) -> None:
    """Print what got better or worse beyond noise from OLD to NEW, CSV files of one benchmark."""
    frames = [read(old), read(new)]
    for name in ignore:
        if not any(name in frame for frame in frames):
            raise click.ClickException(f"Neither file has a column {name!r} to ignore")
    left = [frame.drop(columns=list(ignore), errors="ignore") for frame in frames]
    found = compare(left[0], left[1], tolerance)
    click.echo(report(found))
    if fail_on_worse and found.worse:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main(prog_name="compare")
