"""No image is decoded twice in a run, whatever the run does with it."""

from collections import Counter
from pathlib import Path
from typing import Any

import digits
import pytest

from adaptkit.data import listing
from adaptkit.data.cache import PixelCache
from adaptkit.data.decode import decode
from adaptkit.pipeline import adapt_domain_folders, adapt_folder, shift_folders

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source net; 150 images of its domain; 120 of another with labels, two of them broken."""
    folder = tmp_path_factory.mktemp("once")
    digits.save(folder / "source.pt", NAMES)
    x, y = digits.images()
    for number in range(150):
        digits.write(folder / "source" / NAMES[int(y[number])] / f"{number}.png", x[number])
    for number in range(1400, 1520):
        low = 0.5 + 0.3 * (x[number] - 0.5)
        digits.write(folder / "target" / NAMES[int(y[number])] / f"{number}.png", low)
    for path in sorted((folder / "target").rglob("*.png"))[::70]:
        path.write_bytes(b"broken")
    return folder


@pytest.fixture
def decodes(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file has been decoded."""
    monkeypatch.chdir(tmp_path)
    counts: Counter[Path] = Counter()

    def counted(path: Path, *more: Any) -> Any:
        counts[path] += 1
        return decode(path, *more)

    monkeypatch.setattr(listing, "decode", counted)
    return counts


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"holdout": 0.5, "certify": True, "guard": "report"},
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in (
                {"method": "adain"},
                {"domains": "auto"},
                {"input_fit": True},
                {"mode": "stream", "guard": "off", "batch_size": 7},
            )
        ),
    ],
    ids=str,
)
def test_adapt_decodes_each_image_once(
    place: Path, decodes: Counter[Path], how: dict[str, Any]
) -> None:
    run = adapt_folder(
        place / "source.pt", place / "target", source_data=place / "source", device="cpu", **how
    )
    assert run.report.pictures
    assert len(run.skipped) == 2
    assert set(decodes.values()) == {1}
    assert len(decodes) == 120 + 150


def test_shift_decodes_each_image_once(place: Path, decodes: Counter[Path]) -> None:
    shift_folders(place / "source.pt", place / "target", source_data=place / "source", device="cpu")
    assert set(decodes.values()) == {1}
    assert len(decodes) == 120 + 150


@pytest.mark.parametrize(
    "how",
    [{}, {"samples": 20}, {"memory": 1000}],
    ids=["all in the pooled sample", "some", "in a file"],
)
@pytest.mark.parametrize("column", [False, True])
def test_many_domains_decode_each_image_once(
    place: Path, tmp_path: Path, decodes: Counter[Path], how: dict[str, Any], column: bool
) -> None:
    target = place / "target"
    if column:
        images = sorted(target.rglob("*.png"))
        lines = ["path,domain", *(f"{path},{path.parent.name}" for path in images)]
        target = tmp_path / "manifest.csv"
        target.write_text("\n".join(lines))
    run = adapt_domain_folders(place / "source.pt", target, device="cpu", skip_bad=True, **how)
    assert not run.failed
    assert sum(row.skipped or 0 for row in run.rows) == 2
    assert set(decodes.values()) == {1}
    assert len(decodes) == 120


def test_many_domains_share_one_limit_of_memory(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held: dict[int, int] = {}
    put = PixelCache._put

    def watched(cache: PixelCache, *args: Any) -> None:
        put(cache, *args)
        held[id(cache)] = max(held.get(id(cache), 0), len(cache._held))

    monkeypatch.setattr(PixelCache, "_put", watched)
    adapt_domain_folders(
        place / "source.pt", place / "target", device="cpu", skip_bad=True, memory=64 * 30
    )
    assert list(held.values()) == [30]


def test_only_what_the_sample_needs_is_decoded(place: Path, decodes: Counter[Path]) -> None:
    run = adapt_folder(
        place / "source.pt",
        place / "target",
        samples=20,
        holdout=0.25,
        guard="off",
        device="cpu",
    )
    assert run.statistics is not None
    assert run.statistics.samples <= 20
    assert set(decodes.values()) == {1}
    assert len(decodes) == 30 + 20


def test_a_model_that_stays_as_it_is_is_not_run_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages: list[str] = []
    run = adapt_folder(
        place / "source.pt",
        place / "source",
        source_data=place / "source",
        device="cpu",
        progress=lambda stage, *_: stages.append(stage),
    )
    assert run.decision is not None
    assert run.decision.choice == "source"
    assert "before" in stages
    assert "after" not in stages
    row = next(row for row in run.report.rows if row.metric == "accuracy" and row.scope == "all")
    assert row.before == row.after
