"""`adapt --class-shares`: a target whose mix of classes its user knows."""

import json
from pathlib import Path

import digits
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from adaptkit import DataError
from adaptkit.pipeline.class_shares import read_shares
from cli import main

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.pt, source/CLASS/*.png, and target/ of threes and eights at low contrast."""
    place = tmp_path_factory.mktemp("shares")
    digits.save(place / "source.pt", NAMES)
    x, y = digits.images()
    for number in range(400):
        digits.write(place / "source" / NAMES[int(y[number])] / f"{number}.png", x[number])
    for number in range(digits.TRAINED_ON, len(y)):
        if int(y[number]) in (3, 8):
            low = 0.5 + 0.4 * (x[number] - 0.5)
            digits.write(place / "target" / NAMES[int(y[number])] / f"{number}.png", low)
    return place


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder


def adapt(here: Path, *more: str) -> Result:
    line = ["--source", str(here / "source.pt"), "--target", str(here / "target")]
    return CliRunner().invoke(main, ["adapt", *line, "--out", "x.pt", "--device", "cpu", *more])


def accuracy() -> float:
    frame = pd.read_csv("x.csv").set_index("metric")
    return float(frame["after"]["accuracy"])


def test_two_classes_of_ten_are_adapted_to_and_not_spread_over_all(here: Path) -> None:
    assert adapt(here, "--guard", "off").exit_code == 0
    plain = accuracy()
    Path("shares.csv").write_text("class,share\ndigit 3,50%\ndigit 8,50%\n")
    source = ["--source-data", str(here / "source")]
    result = adapt(here, *source, "--class-shares", "shares.csv", "--certify", "--force")
    assert result.exit_code == 0, result.output
    assert accuracy() > plain + 0.3
    assert accuracy() > 0.9
    assert "Note: the statistics are corrected for the class shares" in result.stdout
    record = json.loads(Path("x.json").read_text())
    assert record["arguments"]["class_shares"] == "shares.csv"
    assert record["certificate"]["worst"] < 1e-3  # of what each layer sees, not what it stores
    assert "--class-shares shares.csv" in record["command"]


def test_uniform_shares_of_a_uniform_source_change_next_to_nothing(here: Path) -> None:
    assert adapt(here, "--guard", "off").exit_code == 0
    plain = accuracy()
    source = ["--source-data", str(here / "source")]
    assert adapt(here, *source, "--class-shares", "uniform", "--force").exit_code == 0
    assert abs(accuracy() - plain) < 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class-shares", "uniform"], "give --source-data"),
        (["--class-shares", "none.csv", "--source-data", "SOURCE"], "cannot read the class shares"),
        (["--class-shares", "uniform", "--mode", "stream"], "do not go with --mode stream"),
        (["--class-shares", "uniform", "--method", "adain"], "leave out class-shares"),
        (["--class-shares", "uniform", "--source-data", "FLAT"], "labelled source images"),
        (["--class-shares", "uniform", "--source-data", "TARGET"], "got 0 of class 0"),
    ],
)
def test_one_line_for_what_will_not_do(here: Path, more: list[str], message: str) -> None:
    places = {"SOURCE": "source", "TARGET": "target", "FLAT": "source/digit 0"}
    result = adapt(here, *(str(here / places[m]) if m in places else m for m in more))
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("a,3\nb,1\n", [3, 1, 0]),
        ("name,count\n\nc, 2.5\n", [0, 0, 2.5]),
        ("\ufeffa,10%\nc,90%", [10, 0, 90]),
        ('"b",1', [0, 1, 0]),
    ],
)
def test_shares_are_read(tmp_path: Path, text: str, shares: list[float]) -> None:
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    assert read_shares(tmp_path / "s.csv", "abc") == shares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "above 0"),
        ("a,0\nb,0", "above 0"),
        ("a,1\nd,1", "names a class d, which is none of the 3"),
        ("a,1\na,2", "names the class a twice"),
        ("a,1\nb,-1", "such as cat,0.25, got b,-1"),
        ("a,1\nb,nan", "got b,nan"),
        ("a,1\nb,inf", "got b,inf"),
        ("a,1\nb", "got b"),
        ("a,many\nb,1", "got a,many"),
        ("a,1,2", "got a,1,2"),
    ],
)
def test_files_that_are_no_shares(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_shares(tmp_path / "s.csv", "abc")


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="expected class,share lines"):
        read_shares(tmp_path / "s.csv", "abc")
    with pytest.raises(DataError, match="cannot read"):
        read_shares(tmp_path, "abc")
