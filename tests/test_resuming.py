"""Streaming passes that are stopped, at any moment, and go on to the same statistics."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import job, values
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import adaptkit
from adaptkit import AdaptkitError, EstimationError, Statistics
from adaptkit.errors import OutputError
from adaptkit.estimation import Resume, resuming

N = 1500


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    return nn.Sequential(*parts, nn.BatchNorm2d(3))


def images() -> Tensor:
    """In which each 37th is not finite."""
    x = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x[::37] = torch.nan
    return x


class Images(Dataset[Tensor]):
    """Images, of which a number is read before `end` is called."""

    def __init__(
        self, end: Callable[[], None] | None = None, after: int = N, seed: int = 1
    ) -> None:
        self.x, self.end, self.after, self.read = images() + (seed - 1), end, after, 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        if self.end and self.read == self.after:
            self.end()
        self.read += 1
        return self.x[index]


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    raise KeyboardInterrupt


def streamed(data: Images, path: Path | None, *, batch_size: int = 64, **how: Any) -> Statistics:
    how = {"samples": 1400, **how}
    loader = DataLoader(data, batch_size=batch_size)
    return adaptkit.estimate(net(), loader, mode="stream", resume=path, **how)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def plain(found: Statistics) -> dict[str, Any]:
    """Return all that statistics say, so that == is to the last bit."""
    fields = (found.samples, found.available, found.random, found.limited, found.dropped)
    return {
        "fields": (*fields, found.unvisited, found.mode),
        **{
            name: (m.count, m.weight, m.samples, m.mean.tolist(), m.m2.tolist(), m.scatter.tolist())
            for name, m in found.moments.items()
        },
    }


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write after every chunk."""
    monkeypatch.setattr(resuming, "SECONDS_APART", 0.0)


def work(path: str, after: int, batch_size: int, workers: bool) -> tuple[dict[str, Any], int]:
    resuming.SECONDS_APART = 0.0
    data = Images(killed if after < N else None, after)
    how = {"weight": lambda x: x.mean((1, 2, 3)).square()} if workers else {}
    found = streamed(data, Path(path), batch_size=batch_size, **how)
    return plain(found), data.read


@pytest.mark.parametrize(
    ("batch_size", "weighted", "moments"),
    [
        (64, False, (700,)),
        pytest.param(64, False, (9, 10, 300, 1000, 1408), marks=pytest.mark.slow),
        pytest.param(50, True, (300, 700, 1408), marks=pytest.mark.slow),
        pytest.param(400, False, (300, 1300), marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_statistics(
    tmp_path: Path, batch_size: int, weighted: bool, moments: tuple[int, ...]
) -> None:
    path = tmp_path / "pass.resume"
    ((truth, whole),) = values(job(1, work, str(path), N, batch_size, weighted))
    for after in moments:
        (ended,) = job(1, work, str(path), after, batch_size, weighted)
        assert ended.code == -signal.SIGKILL
        ((found, read),) = values(job(1, work, str(path), N, batch_size, weighted))
        assert found == truth, after
        # Nine are looked at to tell the data; at most a chunk is lost, and a batch read twice.
        assert read <= whole - max(0, after - 9 - 256 - 2 * batch_size)
        assert names(tmp_path) == []


@pytest.mark.slow
def test_killed_again_and_again_it_gets_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pass.resume"
    truth = plain(streamed(Images(), None))
    for _ in range(20):
        (ended,) = job(1, work, str(path), 400, 64, False)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
    assert ended.value[0] == truth
    assert names(tmp_path) == []


def test_so_it_is_in_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "pass.resume"
    truth = values(job(2, work, str(path), N, 30, False))
    ended = job(2, work, str(path), 500, 30, False)
    assert [one.code for one in ended] == [-signal.SIGKILL] * 2
    assert names(tmp_path) == ["pass.resume", "pass.resume.1"]
    with pytest.raises(OutputError, match=r"something else \(processes 2, now 1"):
        streamed(Images(), path)
    found = values(job(2, work, str(path), N, 30, False))
    assert [statistics for statistics, _ in found] == [statistics for statistics, _ in truth]
    assert all(now < before for (_, now), (_, before) in zip(found, truth, strict=True))
    assert names(tmp_path) == []


def test_what_ctrl_c_stops_loses_nothing_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "SECONDS_APART", 1e9)
    path = tmp_path / "pass.resume"
    seen: list[tuple[str, int, int | None]] = []
    with pytest.raises(KeyboardInterrupt):
        streamed(Images(interrupted, 900), path)
    data = Images()
    # Another batch size: it is none of what the result depends on.
    again = streamed(data, path, batch_size=100, progress=lambda *at: seen.append(at))
    assert plain(again) == plain(streamed(Images(), None))
    assert data.read < 800
    assert next(at for at in seen if at[0] == "streaming") == ("streaming", 768, 1400)
    assert names(tmp_path) == []


@given(
    st.lists(st.integers(0, 700), max_size=4),
    st.lists(st.sampled_from([1, 30, 64, 100, 256, 300]), min_size=5, max_size=5),
    st.sampled_from([300, 513, 514, 700]),
)
@settings(max_examples=15)
def test_stopped_anywhere_and_in_any_batches(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], sizes: list[int], samples: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "pass.resume"
    for after, size in zip(stops, sizes, strict=False):
        with suppress(KeyboardInterrupt):
            streamed(Images(interrupted, after), path, batch_size=size, samples=samples)
    found = streamed(Images(), path, batch_size=sizes[-1], samples=samples)
    assert plain(found) == plain(streamed(Images(), None, samples=samples))


def test_memory_at_the_time_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pass.resume"
    truth = plain(streamed(Images(), None))
    with pytest.raises(KeyboardInterrupt):
        streamed(Images(interrupted, 900), path)
    monkeypatch.setattr("adaptkit.estimation.run.allowed", lambda *_: 200_000)
    assert plain(streamed(Images(), None)) != truth
    assert plain(streamed(Images(), path)) == truth


def test_a_pass_that_had_ended_is_not_repeated(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "pass.resume")
    loader = DataLoader(Images(), batch_size=64)
    first = adaptkit.estimate(net(), loader, mode="stream", samples=1400, resume=resume)
    data = Images()
    again = adaptkit.estimate(
        net(), DataLoader(data, batch_size=64), mode="stream", samples=1400, resume=resume
    )
    assert plain(first) == plain(again)
    assert (data.read, resume.went_on) == (18, first.samples)  # nine twice, to tell the data
    resume.remove()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 3}, r"seed 0, now 3; also 'checksum of the data'"),
        ({"samples": 1300}, "samples 1400, now 1300"),
        ({"memory": 2**28}, "memory null, now 268435456"),
        ({"on_bad": "raise"}, "on_bad skip, now raise"),
        ({"layers": ["1"]}, "layers"),
        ({"weight": len}, "weight null, now builtins.len"),
    ],
)
def test_something_else_is_refused_and_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "pass.resume"
    with pytest.raises(KeyboardInterrupt):
        streamed(Images(interrupted, 900), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=named.replace("'", "")):
        streamed(Images(), path, **change)
    assert path.read_bytes() == before


def test_other_data_and_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pass.resume"
    with pytest.raises(KeyboardInterrupt):
        streamed(Images(interrupted, 900), path)
    with pytest.raises(OutputError, match=r"\(checksum of the data [0-9a-f]{12}, now [0-9a-f]{12}"):
        streamed(Images(seed=2), path)
    other = net()
    with torch.no_grad():
        next(other.parameters())[0, 0, 0, 0] += 1e-3
    with pytest.raises(OutputError, match="checksum of the model"):
        adaptkit.estimate(
            other, DataLoader(Images(), batch_size=64), mode="stream", samples=1400, resume=path
        )


def test_a_torn_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pass.resume"
    with pytest.raises(KeyboardInterrupt):
        streamed(Images(interrupted, 900), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    torn = [whole[:cut] for cut in (0, 7, 100, len(whole) - 1)]
    for content in (*torn, bytes(flipped), b"PK\3\4 a checkpoint", whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(OutputError) as caught:
            streamed(Images(), path)
        assert str(caught.value) == (
            f"{path} is broken, or no file of a run that was stopped: remove it to begin anew"
        )
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        streamed(Images(), path)


def test_what_cannot_be_resumed_says_so(tmp_path: Path) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(images())

    path = tmp_path / "pass.resume"
    for loader in (DataLoader(Stream(), batch_size=8), list(images().split(8))):
        with pytest.raises(EstimationError, match="entered in the middle"):
            adaptkit.estimate(net(), loader, mode="stream", resume=path)
    with pytest.raises(EstimationError, match="resume with mode 'stream', got 'exact'"):
        adaptkit.estimate(net(), [images()], resume=path)
    with pytest.raises(AdaptkitError, match="there is no folder"):
        streamed(Images(), tmp_path / "none" / "pass.resume")
    assert names(tmp_path) == []
