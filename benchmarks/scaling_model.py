"""What a large run costs, on paper: from constants that `python -m benchmarks scaling` measured.

`python -m benchmarks.scaling_model [--gpus N] ...` prints the tables that docs/scaling.md has.
What could not be measured here is an argument, with a default and where it is from (`ASSUMED`).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pandas as pd

from adaptkit.estimation.run import DEFAULT_SAMPLES, FIRST_SAMPLES, SLACK
from benchmarks import scaling

RESULTS = Path(__file__).parent / "results"
IMAGES = 1e9
TOLERANCES = (0.005, 0.003)
SAMPLE = 100_000
ARCHITECTURE = "resnet50"
TWICE = 2  # of what it hands over, what a process sends in an all-reduce round a ring


@dataclass(frozen=True)
class Assumed:
    """What stands for a machine that is not here.

    Args:
        gpus: one process each.
        forward: images of 224 px a second that one GPU passes through a ResNet-50.
        decoders: processes a GPU that decode images.
        all_reduce: seconds of one all-reduce, whatever its size, and of the Python around it.
        bandwidth: bytes a second that one process sends.
        meeting: seconds until all processes have met before a gather.
        memory: bytes that estimation may take on one GPU.
    """

    gpus: int = 64
    forward: float = 1261.0
    decoders: int = 8
    all_reduce: float = 1e-3
    bandwidth: float = 1.25e9
    meeting: float = 0.1
    memory: float = 40e9


ASSUMED = {
    "gpus": ("GPUs, a process each", "given"),
    "forward": (
        "images/s through a ResNet-50, one GPU",
        "published: V100, float32, batches of 256 (NVIDIA DeepLearningExamples, ResNet50 v1.5 "
        "for PyTorch, README)",
    ),
    "decoders": ("decoding processes a GPU (`--workers`)", "assumed"),
    "all_reduce": (
        "s for one all-reduce and the Python around it",
        "assumed; NCCL alone takes 20 µs between two machines (NVIDIA/nccl-tests, issue 150), "
        "gloo on this CPU: above",
    ),
    "bandwidth": ("bytes/s that a process sends", "assumed: 10 Gbit/s"),
    "meeting": ("s until all have met before a gather", "assumed; 2 and 4 processes here: above"),
    "memory": ("bytes that estimation may take a GPU", "assumed: half of 80 GB free, the default"),
}


@dataclass(frozen=True)
class Measured:
    """What was measured, of a ResNet-50.

    Args:
        layers: visits of norm layers, an all-reduce each.
        summed: bytes that a process hands to those.
        gathers: of objects, beside those.
        objects: bytes that a process hands to them.
        streamed: bytes that a process hands over in streaming mode.
        decode: images a second that one process decodes.
        waiting: bytes an image that waits at the norm layer where most are alive.
        error: standard error of the worst layer, times √images.
    """

    layers: int
    summed: float
    gathers: float
    objects: float
    streamed: float
    decode: float
    waiting: float
    error: float

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Measured":
        """Read them from the rows of `scaling.run`, of two processes where they communicate."""
        table = scaling.medians(frame)
        two = table[(table["processes"] == 2) & (table["architecture"] == ARCHITECTURE)]
        exact, streamed = (two[two["method"] == name].iloc[0] for name in ("exact", "stream"))
        one = table[table["processes"] == 1]
        waiting = one[
            one["method"].eq("waiting activations") & one["architecture"].eq(ARCHITECTURE)
        ]
        decode = one[one["method"] == "decode"].iloc[0]
        return cls(
            layers=int(exact["all-reduces"]),
            summed=float(exact["bytes all-reduced"]),
            gathers=float(exact["operations"] - exact["all-reduces"]) / 2,
            objects=float(exact["bytes handed"] - exact["bytes all-reduced"]),
            streamed=float(streamed["bytes handed"]),
            decode=float(decode["samples"] / decode["seconds"]),
            waiting=float(waiting["bytes a sample"].iloc[0]),
            error=float(exact["standard error"] * math.sqrt(exact["samples"])),
        )


@dataclass(frozen=True)
class Plan:
    """A way to run.

    Args:
        name: what is asked for.
        images: that are read, by all processes.
        rounds: of passes through all layers; each has twice the images of the one before.
        exact: or in streaming mode, each process by itself, with one merge at the end.
    """

    name: str
    images: float
    rounds: int = 1
    exact: bool = True


@dataclass(frozen=True)
class Cost:
    """Seconds of a plan, and what a GPU holds and hands over, in bytes."""

    held: float
    reading: float
    forward: float
    all_reduces: int
    handed: float
    talking: float
    seconds: float


def plans(measured: Measured, images: float) -> list[Plan]:
    """Return what one may ask for of so many images."""
    every = [
        Plan(f"`samples={DEFAULT_SAMPLES}`, the default", DEFAULT_SAMPLES),
        Plan(f"`samples={SAMPLE}`", SAMPLE),
        *(_until(tolerance, measured) for tolerance in TOLERANCES),
        Plan('`samples="all"`', images),
        Plan('`samples="all", mode="stream"`', images, exact=False),
    ]
    return [replace(plan, images=min(plan.images, images)) for plan in every]


def _until(tolerance: float, measured: Measured) -> Plan:
    """Return what a run does that tries 128, 256, ... images until its error is small enough."""
    needed = (measured.error / tolerance) ** 2
    doublings = max(0, math.ceil(math.log2(needed / FIRST_SAMPLES)))
    return Plan(f"`tolerance={tolerance}`", FIRST_SAMPLES * 2**doublings, doublings + 1)


def cost(plan: Plan, measured: Measured, assumed: Assumed) -> Cost:
    """Return what a plan costs.

    With n images, G GPUs, r rounds and L norm layers

        T = n / (G · decoders · decode) + p·n / (G · forward)
            + r · (L · all_reduce + 2 · bytes / bandwidth) + gathers · meeting + objects / bandwidth

    where p is 1, and up to 2 of a run with a tolerance, which passes 128, 256, ... n images. In
    streaming mode the next images are decoded during the forward, so the larger of the first two
    counts, r is 0, and the last term is of all processes' moments.
    """
    gpus = assumed.gpus
    each = plan.images / gpus
    reading = each / (assumed.decoders * measured.decode)
    passes = 2 - 0.5 ** (plan.rounds - 1)
    forward = passes * each / assumed.forward
    if plan.exact:
        all_reduces = plan.rounds * measured.layers
        summed = plan.rounds * measured.summed
        objects = measured.objects
        held = each * measured.waiting * SLACK
    else:
        all_reduces, summed, objects = 0, 0.0, measured.streamed
        held = 0.0
    talking = all_reduces * assumed.all_reduce + measured.gathers * assumed.meeting
    talking += (TWICE * summed + gpus * objects) / assumed.bandwidth
    working = reading + forward if plan.exact else max(reading, forward)
    handed = summed + objects
    return Cost(held, reading, forward, all_reduces, handed, talking, working + talking)


def worked(
    frame: pd.DataFrame, assumed: Assumed | None = None, images: float = IMAGES
) -> pd.DataFrame:
    """Return what each plan costs; where it does not fit, no time."""
    assumed = assumed or Assumed()
    measured = Measured.of(frame)
    found = []
    for plan in plans(measured, images):
        spent = cost(plan, measured, assumed)
        fits = spent.held <= assumed.memory
        error = 100 * measured.error / math.sqrt(plan.images)
        row = {
            "asked for": plan.name,
            "images": f"{plan.images:,.0f}",
            "standard error, %": _short(error) if plan.exact else None,
            "GB a GPU holds": _short(spent.held / 1e9) if plan.exact else None,
            "reading, s": _short(spent.reading),
            "forward, s": _short(spent.forward),
            "all-reduces": f"{spent.all_reduces:,}",
            "MB handed over": _short(spent.handed / 1e6),
            "communicating, s": _short(spent.talking),
            "in all": _time(spent.seconds) if fits else "does not fit",
        }
        found.append(row)
    return pd.DataFrame(found)


def by_gpus(
    frame: pd.DataFrame, assumed: Assumed | None = None, images: float = IMAGES
) -> pd.DataFrame:
    """Return how two of the plans scale with GPUs."""
    assumed = assumed or Assumed()
    measured = Measured.of(frame)
    every = plans(measured, images)
    found = []
    for gpus in (8, 64, 512):
        some = replace(assumed, gpus=gpus)
        sample, streamed = (cost(plan, measured, some) for plan in (every[1], every[-1]))
        fits = sample.held <= assumed.memory
        row = {"GPUs": gpus, f"{every[1].name}, GB a GPU holds": _short(sample.held / 1e9)}
        row[f"{every[1].name}, in all"] = _time(sample.seconds) if fits else "does not fit"
        row["of that communicating"] = f"{100 * sample.talking / sample.seconds:.0f}%"
        row[f"{every[-1].name}, in all"] = _time(streamed.seconds)
        found.append(row)
    return pd.DataFrame(found)


def assumed_table(_: pd.DataFrame, assumed: Assumed | None = None) -> pd.DataFrame:
    """Return what is assumed, and where it is from."""
    values = vars(assumed or Assumed())
    rows = [
        {"assumed": what, "option": f"--{name.replace('_', '-')}", "value": f"{values[name]:,g}"}
        | {"from": source}
        for name, (what, source) in ASSUMED.items()
    ]
    return pd.DataFrame(rows)


def measured_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what was measured, medians over rounds."""
    table = scaling.medians(frame)
    measured = Measured.of(frame)
    rows = [
        ("norm layers that a ResNet-50 passes", measured.layers, ""),
        ("bytes that a process hands to their all-reduces", measured.summed / 1e6, "MB a round"),
        ("collective operations beside them", 2 * measured.gathers, "a run"),
        ("bytes that a process hands to those", measured.objects / 1e3, "kB a run"),
        ("the same of a streaming run", measured.streamed / 1e3, "kB a run"),
        *_of_processes(table),
        *_of_images(table, measured),
    ]
    return pd.DataFrame(
        [{"measured": name, "value": _short(value), "unit": unit} for name, value, unit in rows]
    )


def _of_processes(table: pd.DataFrame) -> list[tuple[str, float, str]]:
    found = []
    sums = table[table["method"] == "all-reduce"]
    ends = [sums["case"].iloc[0], sums["case"].iloc[-1]]
    for _, row in sums[sums["case"].isin(ends)].iterrows():
        name = f"one all-reduce, {row['case']}, {row['processes']} processes"
        found.append((name, 1e6 * row["seconds"], "µs"))
    for _, row in table[table["method"] == "gather"].iterrows():
        name = f"a gather of {row['case']}, {row['processes']} processes"
        found.append((name, 1e3 * row["seconds"], "ms"))
    scored = table[(table["method"] == "evaluate") & (table["processes"] == 2)].iloc[0]
    each = scored["bytes handed"] / (scored["samples"] / 2)
    return [*found, ("what evaluating hands over", each, "bytes an image")]


def _of_images(table: pd.DataFrame, measured: Measured) -> list[tuple[str, float, str]]:
    found = []
    decoded = table[(table["method"] == "decode") & (table["processes"] <= 2)]
    for _, row in decoded.iterrows():
        name = f"{row['case']}, {_processes(row['processes'])}"
        found.append((name, row["samples"] / row["seconds"], "images/s each"))
    exact = table[(table["method"] == "exact") & (table["architecture"] == ARCHITECTURE)]
    row = exact.iloc[0]
    name = f"statistics of a ResNet-50, {row['case']}, one core"
    found.append((name, row["samples"] / row["seconds"], "images/s"))
    for _, row in table[table["method"] == "waiting activations"].iterrows():
        name = f"activations that wait, {row['architecture']}, {row['case']}"
        found.append((name, row["bytes a sample"] / 1e6, "MB an image"))
    error = f"standard error of the worst layer of a ResNet-50, {exact.iloc[0]['case']}"
    found.append((f"{error}, times √n", measured.error, "deviations"))
    for method, what in (("list", "finding the names of files"), ("draw", "a random order")):
        row = table[table["method"] == method].iloc[0]
        found.append((what, 1e9 * row["seconds"] / row["samples"], "s for 1e9"))
        found.append((f"{what}, in memory", row["bytes a sample"], "bytes each"))
    return found


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes at once"


def check(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what the model says of the runs that were measured, beside what they took.

    One process's seconds over the cores, and the all-reduces and gathers of so many processes.
    """
    table = scaling.medians(frame)
    cores = int(frame["cores"].iloc[0])
    sums = table[table["method"] == "all-reduce"]
    gathers = table[table["method"] == "gather"].set_index("processes")["seconds"]
    exact = table[(table["method"] == "exact") & ~table["case"].str.contains("one has")]
    found = []
    for (case, architecture), rows in exact.groupby(["case", "architecture"], sort=False):
        alone = float(rows.loc[rows["processes"] == 1, "seconds"].iloc[0])
        for _, row in rows[rows["processes"] > 1].iterrows():
            count = row["processes"]
            one_sum = float(sums.loc[sums["processes"] == count, "seconds"].median())
            objects = (row["operations"] - row["all-reduces"]) / 2
            talking = row["all-reduces"] * one_sum + objects * gathers[count]
            expected = alone / min(count, cores) + talking
            found.append(
                {
                    "case": case,
                    "architecture": architecture,
                    "processes": count,
                    "on paper, s": round(expected, 2),
                    "measured, s": round(row["seconds"], 2),
                    "measured / on paper": round(row["seconds"] / expected, 2),
                }
            )
    return pd.DataFrame(found)


def _short(value: float) -> str:
    """Return a figure in two or three digits.

    >>> _short(0.01234), _short(12.34), _short(1234.5)
    ('0.012', '12', '1,234')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _time(seconds: float) -> str:
    """Return a time as one reads it.

    >>> _time(5.04), _time(300), _time(9000)
    ('5 s', '5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"


@click.command(help=__doc__)
@click.option("--images", type=float, default=IMAGES, show_default=True)
@click.option("--gpus", type=int, default=Assumed.gpus, show_default=True)
@click.option("--forward", type=float, default=Assumed.forward, show_default=True)
@click.option("--decoders", type=int, default=Assumed.decoders, show_default=True)
@click.option("--all-reduce", type=float, default=Assumed.all_reduce, show_default=True)
@click.option("--bandwidth", type=float, default=Assumed.bandwidth, show_default=True)
@click.option("--meeting", type=float, default=Assumed.meeting, show_default=True)
@click.option("--memory", type=float, default=Assumed.memory, show_default=True)
def main(images: float, **given: float) -> None:
    """Print all tables."""
    frame = pd.read_csv(RESULTS / "scaling.csv")
    assumed = Assumed(**given)  # type: ignore[arg-type]
    for table in (
        measured_table(frame),
        assumed_table(frame, assumed),
        worked(frame, assumed, images),
        by_gpus(frame, assumed, images),
        check(frame),
    ):
        click.echo(f"{table.to_string(index=False)}\n")


if __name__ == "__main__":
    main()
