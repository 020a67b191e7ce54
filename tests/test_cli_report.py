"""`adaptkit report`: several runs in one table, one page, and a clear line for each thing wrong."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from adaptkit.report import Report, Row
from adaptkit.report.cells import as_markdown, harmless
from adaptkit.report.runs import names_of, read_report
from cli import main


def save(name: str, change: float | None, details: dict[str, object] | None = None) -> Report:
    """A run of 200 images whose accuracy was 0.5; without labels where change is None."""
    rows = [Row("entropy_mean", "all", 0.9, 0.4, -0.5, -0.6, -0.4, 0.0001, 200)]
    if change is not None:
        low, high = change - 0.05, change + 0.05
        p = 0.0001 if abs(change) > 0.05 else 0.6
        rows.insert(0, Row("accuracy", "all", 0.5, 0.5 + change, change, low, high, p, 200))
        rows.append(Row("recall", "class:=cmd", 0.5, 0.5, 0.0, None, None, None, 20))
    report = Report(tuple(rows), details or {})
    report.to_csv(f"{name}.csv")
    if details is not None:
        report.to_json(f"{name}.json")
    return report


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night").mkdir()
    about = {"arguments": {"source": "net.pt", "target": "images/night"}, "seed": 3}
    save("night/run", 0.25, {**about, "method": "adabn", "samples": {"estimated": 128}})
    save("rain", -0.1)
    save("fog", 0.01)
    save("snow", None)
    return tmp_path


ALL = ("night/run.csv", "rain.csv", "fog.csv", "snow.csv")


def run(*line: str) -> Result:
    return CliRunner().invoke(main, ["report", *line])


def fails(message: str, *line: str) -> None:
    before = sorted(path.name for path in Path().iterdir())
    result = run(*line)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_report_comes_back_as_it_was_written(here: Path) -> None:
    written = save("again", 0.125, {"seed": 1})
    read = read_report("again.csv")
    assert read.rows == written.rows
    assert read.details["seed"] == 1
    assert read_report("rain.csv").details == {}


def test_the_terminal_shows_a_row_a_run(here: Path) -> None:
    result = run(*ALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["run", "50.0", "75.0", "+25.0", "+20.0", "to", "+30.0", "<0.001"]
    assert lines[2].split()[:4] == ["rain", "50.0", "40.0", "-10.0"]
    assert lines[4].split() == ["snow"]
    said = " ".join(lines[6:])
    assert "4 runs: the accuracy rose in 1, fell in 1 and did not change beyond chance in 1" in said
    assert "1 had no labels. The largest change: +25.0 points, run." in said


def test_without_labels_the_entropy_stands_there(here: Path) -> None:
    result = run("snow.csv")
    assert result.stdout.splitlines()[1].split() == ["snow", "0.9", "0.4"]
    assert "1 run, none with labels: whether adapting helped is not known." in result.stdout


def test_csv_holds_every_digit_and_no_formula(here: Path) -> None:
    save("=1+1", 0.1)
    result = run(*ALL, "=1+1.csv", "--format", "csv")
    frame = pd.read_csv(io.StringIO(result.stdout)).set_index("run")
    night = frame.loc["run"].to_dict()
    assert (night["target"], night["method"]) == ("images/night", "adabn")
    assert (night["seed"], night["samples"], night["n"]) == (3, 128, 200)
    assert frame.loc["rain", "accuracy change"] == -0.1
    assert frame.loc["rain", ["target", "seed"]].isna().sum() == 2
    assert "'=1+1" in frame.index
    assert harmless("a@b") == "a@b"


def test_markdown_is_a_table_whatever_the_names(here: Path) -> None:
    save("a|b<i>", 0.1)
    lines = run("a|b<i>.csv", *ALL, "--format", "md").stdout.splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "a\\|b&lt;i>" in lines[2]
    assert "| +25.0 |" in lines[3]
    assert as_markdown(pd.DataFrame({"a": ["x\ny"]})).splitlines()[2] == "| x y |"


def test_a_page_is_written_and_nothing_is_lost(here: Path) -> None:
    result = run(*ALL, "--format", "html")
    assert result.stdout == "Wrote runs.html\n"
    page = Path("runs.html").read_text(encoding="utf-8")
    assert "4 runs: the accuracy rose in 1" in page
    assert "adaptkit report night/run.csv rain.csv fog.csv snow.csv --format html" in page
    fails("runs.html exists", *ALL, "--format", "html")
    assert run(*ALL, "--format", "html", "--force", "-q").stdout == ""
    assert run(*ALL, "--format", "md", "--out", "runs.md").stdout == "Wrote runs.md\n"
    assert Path("runs.md").read_text(encoding="utf-8").startswith("| run |")
    fails("rain.csv is also the input", *ALL, "--format", "csv", "--out", "rain.csv", "--force")
    fails("--out needs --format", *ALL, "--out", "x.txt")


def test_confusion_matrices_beside_reports_are_passed_over(here: Path) -> None:
    Path("rain-confusion.csv").write_text("true,cat\n")
    assert run("rain.csv", "rain-confusion.csv").stdout == run("rain.csv").stdout
    fails("confusion matrices alone", "rain-confusion.csv")


def test_what_is_wrong_is_said_in_a_line(here: Path) -> None:
    fails("cannot read nothing.csv: No such file", "nothing.csv")
    fails("rain.csv stands twice", "rain.csv", "rain.csv")
    Path("other.csv").write_text("a,b\n1,2\n")
    fails("Expected other.csv to have the columns metric,scope,before", "other.csv")
    Path("empty.csv").write_text("")
    fails("empty.csv is not a report", "empty.csv")
    Path("bytes.csv").write_bytes(b"\xff\xfe\x00")
    fails("bytes.csv is not a report", "bytes.csv")
    text = Path("rain.csv").read_text().replace("0.4,", "much,")
    Path("words.csv").write_text(text)
    fails("words.csv is not a report: a figure in it is not a number", "words.csv")
    Path("rain.json").write_text("{")
    fails("cannot read rain.json beside the report", "rain.csv")
    Path("rain.json").write_text(json.dumps([1]))
    assert run("rain.csv").exit_code == 0
    Path("rain.json").write_text(json.dumps({"seed": [1], "method": {}, "arguments": 7}))
    assert run("rain.csv", "--format", "csv").exit_code == 0
    fails("Missing argument")


def test_names_tell_reports_apart() -> None:
    assert names_of(["a/b/x.csv", "c/b/x.csv"]) == ["a/b/x", "c/b/x"]
    assert names_of(["x.csv", "y/x.csv"]) == ["x", "y/x"]
    assert names_of(["only.csv"]) == ["only"]
