"""The comparison of two runs of a benchmark: what it flags, what it leaves, and its statistics."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

from benchmarks.compare import Comparison, Pair, compare, cost_test, main, report, share_tests

ROOT = Path(__file__).parent.parent
MACHINE = {"processor": "AMD EPYC", "isa": "AVX2", "threads": 2, "torch": "2.15.0", "date": "today"}


def as_read(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Rows as `read` returns them, all text."""
    return pd.DataFrame(rows).fillna("").astype(str)


def accuracies(
    groups: int = 8, seeds: int = 3, samples: object = 1000, **more: Any
) -> list[dict[str, object]]:
    return [
        {
            "method": "adabn",
            "corruption": f"noise {group}",
            "seed": seed,
            "before": 0.5,
            "after": 0.7 + group / 100,
            "change": 0.2,
            "samples": samples,
            **MACHINE,
            **more,
        }
        for group in range(groups)
        for seed in range(seeds)
    ]


def timings(
    seconds: float, peak: float = 100, rounds: int = 5, **more: Any
) -> list[dict[str, object]]:
    jitter = [0.99, 1.0, 1.02, 0.98, 1.01][:rounds]
    return [
        {
            "method": method,
            "round": i,
            "seconds": base * wobble,
            "peak MiB": peak * (2 - wobble),
            **MACHINE,
            **more,
        }
        for method, base in [("forward", 4.0), ("adaptkit", seconds)]
        for i, wobble in enumerate(jitter)
    ]


def run(old: pd.DataFrame, new: pd.DataFrame, tolerance: float = 0.1) -> tuple[Comparison, str]:
    found = compare(old, new, tolerance)
    text = report(found)
    assert max(map(len, text.splitlines())) <= 80
    return found, text


def test_identical_files_have_no_change() -> None:
    for rows in (accuracies(), timings(4)):
        found, text = run(as_read(rows), as_read(rows))
        count = len(found.groups)
        assert not found.worse + found.better + found.unknown
        assert text.endswith(
            f"{count} groups compared: 0 worse, 0 better, {count} within noise ({count} equal)"
        )


@pytest.mark.parametrize("name", ["throughput", "warm", "memory", "profile", "norms", "precision"])
def test_committed_results_can_be_compared(name: str) -> None:
    path = str(ROOT / "benchmarks" / "results" / f"{name}.csv")
    ran = CliRunner().invoke(main, [path, path, "--fail-on-worse"])
    assert ran.exit_code == 0
    assert "0 worse, 0 better" in " ".join(ran.output.split())


def test_a_drop_and_a_gain_are_flagged_and_jitter_is_not() -> None:
    old, new = as_read(accuracies()), accuracies()
    for i, row in enumerate(new):
        row["after"] = float(str(row["after"])) + [0.002, -0.003, 0.004][i % 3]
        if row["corruption"] == "noise 4":
            row["after"] = 0.62
        if row["corruption"] == "noise 5":
            row["after"] = 0.95
    found, text = run(old, as_read(new))
    assert [finding.group for finding in found.worse] == [("adabn", "noise 4")]
    assert [finding.group for finding in found.better] == [("adabn", "noise 5")]
    assert "Groups by corruption\n" in text  # the method is the same everywhere
    assert "  after 74.00 to 62.00 (-12.00 ±2.34)  noise 4" in text
    assert text.index("Worse") < text.index("Better")
    assert text.endswith("8 groups compared: 1 worse, 1 better, 6 within noise")


def test_the_largest_comes_first() -> None:
    new = accuracies()
    for row in new:
        row["after"] = {"noise 1": 0.5, "noise 2": 0.1}.get(str(row["corruption"]), row["after"])
    _, text = run(as_read(accuracies()), as_read(new))
    assert text.index("noise 2") < text.index("noise 1")


def test_before_counts_where_there_is_no_after() -> None:
    old, new = accuracies(2), accuracies(2)
    for rows, share in ((old, 0.5), (new, 0.3)):
        for row in rows:
            row["before"] = share
            if row["corruption"] == "noise 1":
                row["after"] = ""
    found, text = run(as_read(old), as_read(new))
    assert [finding.group[1] for finding in found.worse] == ["noise 1"]
    assert "before 50.00 to 30.00" in text


def test_equal_means_every_seed() -> None:
    new = accuracies(1)
    new[0]["after"], new[1]["after"] = 0.71, 0.69
    _, text = run(as_read(accuracies(1)), as_read(new))
    assert text.endswith("1 group compared: 0 worse, 0 better, 1 within noise")


def test_only_matched_seeds_count() -> None:
    old, new = accuracies(1), accuracies(1, seeds=5)
    for row in new:
        row["after"] = 0.1 if int(str(row["seed"])) > 2 else row["after"]
    found, _ = run(as_read(old), as_read(new))
    assert found.equal == set(found.groups)
    found, text = run(as_read(old), as_read(new[3:]))
    assert "Accuracy in no repeat that both files have: 1 group" in text
    assert "1 not judged" in text


def test_numbers_alike_are_the_same_group() -> None:
    old, new = accuracies(2, severity=1), accuracies(2, severity="1.0")
    found, _ = run(as_read(old), as_read(new))
    assert len(found.groups) == 2


@pytest.mark.parametrize("seed", range(5))
def test_pure_noise_is_left_alone(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.uniform(0.05, 0.95, 200)
    frames = [
        as_read(
            [
                {"case": i, "after": draw.binomial(500, share) / 500, "n": 500}
                for i, share in enumerate(truth)
            ]
        )
        for _ in range(2)
    ]
    found, _ = run(frames[0], frames[1])
    assert len(found.worse + found.better) <= 1


def test_noise_is_what_a_simulation_says() -> None:
    # Drawn from the two accuracies' mean: how often do two files differ by so much?
    draw = np.random.default_rng(0)
    for old, new, count in ((0.80, 0.77, 800), (0.5, 0.46, 1000), (0.97, 0.95, 600)):
        [outcome] = share_tests([pair([old], [new], count)])
        chance = draw.binomial(count, (old + new) / 2, (2, 400_000)) / count
        gaps = np.abs(chance[1] - chance[0])
        expected = np.mean(gaps >= abs(new - old) - 1e-9)
        assert outcome.p == pytest.approx(expected, rel=0.12)
        assert outcome.noise == pytest.approx(1.96 * np.std(chance[1] - chance[0]), rel=0.02)


def pair(old: Sequence[float], new: Sequence[float], count: float) -> Pair:
    counts = np.full(len(old), count)
    return Pair(np.array(old), np.array(new), counts, counts)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("extra", [0.0, 0.03, 0.1])
def test_runs_that_vary_more_than_their_images_are_not_called_changes(
    seeds: int, extra: float
) -> None:
    # Retrained models: the true accuracies differ between runs by `extra`, of no sign on the whole.
    draw = np.random.default_rng(1)
    pairs = []
    for _ in range(1500):
        old = draw.binomial(1000, 0.6, seeds) / 1000
        shifted = np.clip(0.6 + draw.normal(0, extra, seeds), 0, 1)
        new = draw.binomial(1000, shifted) / 1000
        pairs.append(pair(list(old), list(new), 1000))
    p = np.array([outcome.p for outcome in share_tests(pairs)])
    assert 0.02 < np.mean(p < 0.05) < 0.06
    assert np.mean(p < 0.001) < 0.005


def test_one_group_whose_seeds_disagree_hides_no_other() -> None:
    steady = [pair([0.7, 0.71, 0.7], [0.7, 0.711, 0.701], 1000) for _ in range(9)]
    wild = pair([0.7, 0.7, 0.7], [0.7, 0.7, 0.1], 1000)
    worse = pair([0.7, 0.7, 0.7], [0.64, 0.65, 0.64], 1000)
    *_, of_wild, of_worse = share_tests([*steady, wild, worse])
    assert of_wild.p > 0.1
    assert of_wild.p == pytest.approx(stats.ttest_1samp([0, 0, -0.6], 0).pvalue, rel=0.01)
    assert of_worse.p < 1e-4


def test_without_counts_the_seeds_alone_say_the_noise() -> None:
    [outcome] = share_tests([pair([0.7, 0.72, 0.71], [0.6, 0.63, 0.62], np.nan)])
    assert outcome.p == pytest.approx(stats.ttest_1samp([-0.1, -0.09, -0.09], 0).pvalue)


def test_noise_can_be_unknown() -> None:
    old, new = accuracies(2, seeds=1, samples=""), accuracies(2, seeds=1, samples="")
    new[1]["after"] = 0.3
    found, text = run(as_read(old), as_read(new))
    assert not found.worse
    assert "Changed, noise unknown\n  after 71.00 to 30.00 (-41.00)  noise 1" in text
    assert text.endswith("1 within noise (1 equal), 1 changed, noise\n  unknown")


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    draw = np.random.default_rng(2)
    old = [{"case": f"case {i}", "after": 0.5, "n": 1000} for i in range(40)]
    new = [{**row, "after": round(0.5 - draw.uniform(0, 0.09), 3)} for row in old]
    found, _ = run(as_read(old), as_read(new))
    smooth = [(float(str(row["after"])) * 1000 + 1) / 1002 for row in new]
    error = [((501 / 1002) ** 2 / 1000 + s * (1 - s) / 1000) ** 0.5 for s in smooth]
    gaps = [0.5 - float(str(row["after"])) for row in new]
    p = [float(2 * stats.norm.sf(gap / e)) for gap, e in zip(gaps, error, strict=True)]
    ranked = sorted(range(40), key=p.__getitem__)
    last = max(rank for rank, i in enumerate(ranked, start=1) if p[i] <= 0.05 * rank / 40)
    assert {finding.group[0] for finding in found.worse} == {f"case {i}" for i in ranked[:last]}
    assert 5 < last < sum(value < 0.05 for value in p)  # the correction matters here


def test_slower_and_larger_are_worse() -> None:
    found, text = run(as_read(timings(4)), as_read(timings(6)))
    assert [finding.group for finding in found.worse] == [("adaptkit",)]
    assert "  seconds 4 to 6 (x1.50)  adaptkit" in text
    found, text = run(as_read(timings(4, peak=200)), as_read(timings(4)))
    assert [finding.group for finding in found.better] == [("forward",), ("adaptkit",)]
    assert "peak MiB 200 to 100 (x0.50)" in text


def test_costs_have_a_tolerance() -> None:
    old, new = as_read(timings(4)), as_read(timings(4.32))
    assert not run(old, new)[0].worse
    assert len(run(old, new, tolerance=0.05)[0].worse) == 1


def test_few_repeats_get_no_verdict() -> None:
    _, text = run(as_read(timings(4, rounds=2)), as_read(timings(40, rounds=2)))
    assert "4 timings have too few repeats to judge\n2 groups compared: 0 worse" in text
    assert "2 not judged" in text


@pytest.mark.parametrize("other", [{"threads": 8}, {"torch": "2.16.0"}, {"isa": "AVX512"}])
def test_timings_of_other_machines_are_skipped(other: dict[str, Any]) -> None:
    found, text = run(as_read(timings(4)), as_read(timings(40, **other)))
    assert not found.worse
    assert text.startswith(f"Machines differ in {', '.join(other)}: timings skipped\n")
    new = accuracies(seconds=9, **other)
    for row in new:
        row["after"] = 0.2
    found, text = run(as_read(accuracies(seconds=1)), as_read(new))
    assert len(found.worse) == 8  # accuracies are compared all the same


def test_an_unknown_machine_is_no_other_one() -> None:
    found, _ = run(as_read(timings(4, isa="")), as_read(timings(6)))
    assert len(found.worse) == 1


def test_costs_agree_with_scipy() -> None:
    draw = np.random.default_rng(3)
    for sizes in ((3, 3), (5, 4), (10, 3)):
        old, new = (np.exp(draw.normal(1, 0.1, size)) for size in sizes)
        expected = stats.ttest_ind(np.log(old), np.log(new), equal_var=False).pvalue
        assert cost_test(old, new) == pytest.approx(expected)
    same = np.full(3, 208.1)
    assert cost_test(same, same) == 1
    assert cost_test(same, 1.2 * same) == 0


def test_noisy_timings_are_left_alone() -> None:
    # Heavy-tailed, as timings are: some rounds take half as long again.
    draw = np.random.default_rng(4)
    frames = []
    for _ in range(2):
        seconds = np.exp(draw.normal(0, 0.1, (200, 5))) * draw.choice(
            [1, 1.5], (200, 5), p=[0.9, 0.1]
        )
        frames.append(
            as_read(
                [
                    {"case": i, "round": j, "seconds": value}
                    for i, of_case in enumerate(seconds)
                    for j, value in enumerate(of_case)
                ]
            )
        )
    found, _ = run(frames[0], frames[1])
    assert len(found.worse + found.better) <= 2


def test_failures_come_and_go() -> None:
    old, new = accuracies(3, failed="", seconds=5), accuracies(3, failed="", seconds=5)
    new[1] |= {"failed": "ValueError: \x1b[31ma batch of one image has no variance", "after": ""}
    old[3] |= {"failed": "RuntimeError: out of memory", "after": "", "seconds": 0.001}
    found, text = run(as_read(old), as_read(new))
    assert [finding.group[1] for finding in found.worse] == ["noise 0"]
    assert [finding.group[1] for finding in found.better] == ["noise 1"]
    assert "  failed 0 to 1 of 3: ValueError:" in text
    assert "  failed 1 to 0 of 3: RuntimeError…t of memory  noise 1" in text
    assert "\x1b" not in text
    for rows in (old, new):
        assert not run(as_read(rows), as_read(rows))[0].worse


def test_a_method_that_fails_altogether_is_worse() -> None:
    old = accuracies(2)  # without a column `failed`
    new = accuracies(2, failed="")
    for row in new[:3]:
        row |= {"failed": "TypeError", "before": "", "after": ""}
    found, text = run(as_read(old), as_read(new))
    assert [finding.text for finding in found.worse] == ["failed 0 to 3 of 3: TypeError"]
    assert "no repeat" not in text


def test_groups_of_one_file_are_counted_and_named() -> None:
    found, text = run(as_read(accuracies(8)), as_read(accuracies(3)))
    assert len(found.groups) == 3
    assert "Only in OLD: 5 groups, such as noise 3; noise 4; noise 5\n" in text
    _, text = run(as_read(accuracies(3)), as_read(accuracies(4)))
    assert "Only in NEW: 1 group, noise 3\n" in text


def test_columns_of_one_file_are_named_and_left() -> None:
    new = [row for batch in (1, 64) for row in accuracies(2, batch=batch)]
    found, text = run(as_read(accuracies(2, order="random")), as_read(new))
    assert len(found.groups) == 2
    assert "Ignored, as one file only has it: order (OLD), batch (NEW)" in text
    assert "Several rows a repeat, averaged: 2 groups" in text


def test_what_is_measured_tells_no_groups_apart() -> None:
    draw = np.random.default_rng(5)
    rows = [
        [row | {"stated error": draw.random(), "severity": 0.125} for row in accuracies(2)]
        for _ in range(2)
    ]
    found, text = run(as_read(rows[0]), as_read(rows[1]))
    assert found.keys == ["method", "corruption", "severity"]
    assert "Taken as measured, so they tell no groups apart: stated error\n" in text
    assert "2 within noise (2 equal)" in text


def test_long_keys_fit() -> None:
    names = [f"architecture {'of many words ' * 9}{i}" for i in range(6)]
    old = [row for name in names for row in accuracies(1, architecture=name, order=name, b=name)]
    new = [{**row, "after": 0.1} for row in old]
    _, text = run(as_read(old), as_read(new))
    assert "Worse" in text
    assert all(f"{i}," in text for i in range(6))
    run(as_read(old), as_read(old[:3]))


def test_a_frame_is_left_as_it_was() -> None:
    old = as_read(accuracies(2, severity="1.0"))
    kept = old.copy()
    compare(old, old)
    pd.testing.assert_frame_equal(old, kept)


def write(path: Path, rows: Sequence[dict[str, object]]) -> str:
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


def test_ignore_and_exit_status(tmp_path: Path) -> None:
    measured = [row | {"spread": i} for i, row in enumerate(timings(4))]
    old = write(tmp_path / "old.csv", measured)
    new = write(
        tmp_path / "new.csv", [row | {"spread": i + 99} for i, row in enumerate(timings(9))]
    )
    ran = CliRunner().invoke(main, [old, new])
    assert ran.exit_code == 1
    assert ran.output == (
        "Error: No group is in both OLD and NEW: no value in common of spread (see --ignore)\n"
    )
    assert CliRunner().invoke(main, [old, new, "--ignore", "spread"]).exit_code == 0
    options = [old, new, "--ignore", "spread", "--fail-on-worse"]
    assert CliRunner().invoke(main, options).exit_code == 1
    assert CliRunner().invoke(main, [new, old, *options[2:]]).exit_code == 0
    assert "no_such" in CliRunner().invoke(main, [old, old, "--ignore", "no_such"]).output


GOOD = "case,seed,after,n\na,0,0.5,100\n"


@pytest.mark.parametrize(
    ("old", "says"),
    [
        (None, "No such file"),
        (b"", "is not a CSV file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not a CSV file"),
        (b"case,after\na,0.5,1,2\nb,0.1,1,2\n", "is not a CSV file"),
        (b"a sentence\nand, here, more\n", "is not a CSV file"),
        (b"case,seed,after,n\n", "has no rows"),
        (b"method,seed,after\na,0,0.5\n", "no column in common that names a group"),
        (b"case,seed,speed\na,0,0.5\n", "no measured column in common"),
        (b"case,seed,after\nb,0,0.5\n", "No group is in both OLD and NEW"),
        (b"case,seed,after\na,0,high\n", "OLD has after = 'high'"),
        (b"case,seed,after\na,0,50\n", "OLD has after outside of 0..1"),
    ],
)
def test_bad_input_is_one_clear_line(old: bytes | None, says: str, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(GOOD)
    if old is not None:
        (tmp_path / "old.csv").write_bytes(old)
    ran = CliRunner().invoke(main, [str(tmp_path / "old.csv"), str(tmp_path / "new.csv")])
    assert ran.exit_code == 1
    assert isinstance(ran.exception, SystemExit)
    assert says in ran.output
    assert ran.output.count("\n") == 1


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, [str(tmp_path), str(tmp_path)])
    assert ran.exit_code == 1
    assert ran.output.startswith(f"Error: {tmp_path}: ")


def test_none_is_a_method_and_not_missing(tmp_path: Path) -> None:
    rows = [row | {"method": "None"} for row in accuracies(2)]
    path = write(tmp_path / "a.csv", [*rows, *accuracies(2)])
    ran = CliRunner().invoke(main, [path, path])
    assert "4 groups compared" in ran.output


@pytest.mark.parametrize("start", [["benchmarks/compare.py"], ["-m", "benchmarks.compare"]])
def test_it_starts_either_way(start: list[str], tmp_path: Path) -> None:
    old = write(tmp_path / "old.csv", timings(4))
    new = write(tmp_path / "new.csv", timings(9))
    command = [sys.executable, "-W", "error", *start, old, new, "--fail-on-worse"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert ran.stderr == ""
    assert ran.returncode == 1
    assert "seconds 4 to 9 (x2.25)  adaptkit" in ran.stdout


def test_errors_are_for_click() -> None:
    with pytest.raises(click.ClickException, match="no measured column"):
        compare(as_read([{"case": 1}]), as_read([{"case": 1}]))


def test_a_peak_below_what_was_there_before_is_no_fault(tmp_path: Path) -> None:
    rows = "case,method,seed,after,samples,seconds,peak MiB\na,b,0,0.5,100,1.0,-0.1\n"
    path = tmp_path / "a.csv"
    path.write_text(rows)
    result = CliRunner().invoke(main, [str(path), str(path)])
    assert result.exit_code == 0, result.output
    assert "1 group compared: 0 worse, 0 better" in result.output
