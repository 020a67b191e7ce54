"""The command on what is no folder of images: manifests, arrays, signals and tables."""

import json
import re
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from adaptkit import (
    EstimationError,
    Transform,
    adapt,
    certify,
    estimate,
    evaluate,
    load_checkpoint,
    save_checkpoint,
)
from adaptkit.data import open as open_data
from adaptkit.guard import decide
from adaptkit.models import SmallCNN
from adaptkit.norms import norm_layers
from adaptkit.pipeline import adapt_folder
from cli import main

GREY = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
CODE = """
from torch import nn

def signals(num_classes=3):
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )

def features(num_classes=2):
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def factory(name: str) -> nn.Sequential:
    found: dict[str, Any] = {}
    exec(CODE, found)
    torch.manual_seed(0)
    net: nn.Sequential = found[name]()
    return net


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.pt for images, images/, and nets.py for all else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    names = ("cat", "dog", "emu")
    net = SmallCNN(num_classes=3, width=4)
    save_checkpoint("net.pt", net, arch="adaptkit:small_cnn", transform=GREY, classes=names)
    Path("nets.py").write_text(CODE)
    rng = np.random.default_rng(0)
    for i in range(30):
        folder = Path("images", names[i % 3])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return tmp_path


def run(*args: str, target: str, source: str = "net.pt", out: str = "out.pt") -> Result:
    line = ["adapt", "--source", source, "--target", target, "--out", out, "--force"]
    return CliRunner().invoke(main, [*line, "--device", "cpu", *args])


def said(out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    return found


def rows(out: str = "out") -> pd.DataFrame:
    return pd.read_csv(f"{out}.csv").set_index(["metric", "scope"])


def stored(path: str, arch: str | None = None) -> list[Tensor]:
    layers = norm_layers(load_checkpoint(path, arch=arch).model).values()
    return [t for layer in layers for t in (layer.running_mean, layer.running_var)]  # type: ignore[misc]


def images() -> list[Path]:
    return sorted(Path("images").rglob("*.png"))


def test_a_manifest_of_all_images_is_the_folder() -> None:
    assert run(target="images", out="folder.pt").exit_code == 0
    paths = images()
    labels = [path.parent.name for path in paths]
    pd.DataFrame({"path": map(str, paths), "label": labels}).to_csv("m.csv", index=False)
    result = run(target="m.csv")
    assert result.exit_code == 0, result.output
    for one, other in zip(stored("out.pt"), stored("folder.pt"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    pd.testing.assert_frame_equal(rows().loc[["accuracy"]], rows("folder").loc[["accuracy"]])
    assert said()["samples"] == said("folder")["samples"]


def test_an_array_of_pixels_is_the_folder_too() -> None:
    assert run(target="images", out="folder.pt").exit_code == 0
    pixels = np.stack([np.asarray(Image.open(path)) for path in images()])
    labels = [("cat", "dog", "emu").index(path.parent.name) for path in images()]
    np.savez("x.npz", x=pixels, y=labels)
    result = run(target="x.npz")
    assert result.exit_code == 0, result.output
    for one, other in zip(stored("out.pt"), stored("folder.pt"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    pd.testing.assert_frame_equal(rows().loc[["accuracy"]], rows("folder").loc[["accuracy"]])


def test_domains_that_are_taken_as_one_are_mentioned() -> None:
    paths = images()
    domains = ["north" if i % 2 else "south" for i in range(len(paths))]
    pd.DataFrame({"path": map(str, paths), "domain": domains}).to_csv("m.csv", index=False)
    assert "2 domains taken as one; --domains folder adapts to each." in run(target="m.csv").output


def shown(page: str) -> str:
    """Return a page's text and the words of its charts, without its style and its program."""
    html = Path(page).read_text(encoding="utf-8")
    other = r"<style.*?</style>|<script(?! type=.application/json).*?</script>|<meta[^>]*>"
    return re.sub(other, "", html, flags=re.DOTALL)


@pytest.mark.parametrize("guard", ["off", "auto", "report"])
def test_what_is_no_image_is_called_a_sample(guard: str) -> None:
    torch.save(factory("signals").state_dict(), "s.pt")
    write_signals()
    result = run(
        *SIGNALS, "--guard", guard, "--source-data", "x.npz", target="x.npz", source="s.pt"
    )
    assert result.exit_code == 0, result.output
    assert "samples" in result.output
    for text in (result.output, shown("out.html")):
        assert not re.findall(r".{30}\b[Ii]mages?\b.{30}", text)
    shift = ["--model", "s.pt", "--target", "x.npz", *SIGNALS, "--source-data", "x.npz"]
    assert "mage" not in CliRunner().invoke(main, ["shift", *shift]).output
    line = ["--source", "s.pt", "--source-data", "x.npz", "--out", "k.pt", *SIGNALS]
    assert "mage" not in CliRunner().invoke(main, ["calibrate", *line]).output


SIGNALS = ["--arch", "nets.py:signals"]


def write_signals(name: str = "x.npz", shift: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(90, 2, 20)) * 2 + shift).astype(np.float32)
    np.savez(name, x=x, y=np.arange(90) % 3, weight=np.where(np.arange(90) < 30, 5.0, 1.0))
    return x


@pytest.mark.parametrize("guard", ["off", "auto"])
def test_signals_of_a_net_that_no_transform_fits(guard: str) -> None:
    net = factory("signals")
    torch.save(net.state_dict(), "s.pt")
    x = torch.from_numpy(write_signals())
    result = run(*SIGNALS, "--guard", guard, "--certify", target="x.npz", source="s.pt")
    assert result.exit_code == 0, result.output
    assert "no certificate: samples weigh unlike" in result.output
    assert "2 x 20 (channels, length), as they are" in result.output
    values = net[0](x).detach().double()
    weight = torch.where(torch.arange(90) < 30, 5.0, 1.0).double()[:, None]
    mean = (values.mean(2) * weight).sum(0) / weight.sum()
    if guard == "off":
        torch.testing.assert_close(
            stored("out.pt", SIGNALS[1])[0].double(), mean, rtol=1e-5, atol=1e-6
        )
    before = evaluate(net, open_data("x.npz", outputs=3))
    accuracy = rows().loc["accuracy"].loc["all"]
    assert accuracy["before"] == pytest.approx(before.accuracy)
    assert said()["samples"]["labelled"]
    assert said()["transform"] is None


def test_a_table_for_a_net_over_features() -> None:
    net = factory("features")
    torch.save(net.state_dict(), "f.pt")
    x = np.random.default_rng(2).normal(3, 2, size=(80, 5)).astype(np.float32)
    table = pd.DataFrame(x, columns=list("abcde")).assign(label=np.arange(80) % 2)
    table.to_csv("t.csv", index=False)
    arch = ["--arch", "nets.py:features", "--guard", "off"]
    result = run(*arch, "--source-data", "t.csv", target="t.csv", source="f.pt")
    assert result.exit_code == 0, result.output
    seen = net[0](torch.from_numpy(x)).detach()
    mean, variance = stored("out.pt", arch[1])
    torch.testing.assert_close(mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance, seen.var(0), rtol=1e-4, atol=1e-5)
    assert "input_shift" not in rows().index.get_level_values(0)
    for columns, said in (
        (list("abcdef"), "of 6 features: its first layer takes 5 features: leave out what is no"),
        (list("abcd"), "of 4 features: its first layer takes 5 features: some are missing"),
    ):
        table.assign(f=1.0)[columns].to_csv("u.csv", index=False)
        result = run(*arch, target="u.csv", source="f.pt")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    again = CliRunner().invoke(
        main, ["shift", "--model", "f.pt", "--target", "t.csv", *arch[:2], "--source-data", "t.csv"]
    )
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("x.npz", ["--method", "adain"], "--method adain and --input-fit are for images"),
        ("x.npz", ["--input-fit"], "--method adain and --input-fit are for images"),
        ("x.npz", ["--source-data", "images"], "expected source data of the target's form"),
        ("flat.npy", [], "does not take samples of 7 features"),
        ("images", [], "s.pt does not say how images are prepared"),
        ("nowhere.csv", [], "there is no file nowhere.csv"),
        ("nets.py", [], "is a file of no known kind"),
        ("", [], "expected a path or a URL, got nothing"),
        ("simplecache::http://me:secret@host/x", [], "URLs through another protocol"),
    ],
)
def test_what_does_not_fit_is_one_line(target: str, more: list[str], message: str) -> None:
    torch.save(factory("signals").state_dict(), "s.pt")
    write_signals()
    np.save("flat.npy", np.ones((4, 7)))
    if "--source-data" in more:
        more = [*more, "--image-size", "8", "--mean", "0.5", "--std", "0.5"]
    result = run(*SIGNALS, *more, target=target, source="s.pt")
    assert result.exit_code == (1 if target else 2)
    assert message in result.stderr
    assert "secret" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("out.pt").exists()


def test_weights_count_samples_as_often() -> None:
    """Whole weights are repetitions, but for Bessel's correction, which goes by the samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    x = torch.randn(40, 2, 9)
    weights = torch.arange(40) % 3
    np.savez("x.npz", x=x.numpy(), weight=weights.numpy())
    loader = open_data("x.npz", batch_size=7)
    found = estimate(net, loader, weight=loader.weight)
    repeated = estimate(net, [x.repeat_interleave(weights, 0)])
    for name in found:
        torch.testing.assert_close(found[name].mean, repeated[name].mean, rtol=1e-2, atol=1e-2)
    first = found["1"]
    torch.testing.assert_close(first.mean, repeated["1"].mean, rtol=1e-6, atol=1e-6)


def test_samples_of_no_weight_are_not_drawn_for_the_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    x = torch.randn(200, 3)
    weight = torch.zeros(200)
    weight[[3, 70, 199]] = 1.0
    np.savez("x.npz", x=x.numpy(), weight=weight.numpy())
    loader = open_data("x.npz")
    for samples in (2, 3, 50):
        found = estimate(net, loader, samples=samples)
        assert found.samples == min(samples, 3)
        assert found.available == 3
    expected = estimate(net, [x[[3, 70, 199]]])
    torch.testing.assert_close(found["0"].mean, expected["0"].mean)
    torch.testing.assert_close(found["0"].variance(), expected["0"].variance())
    assert len(evaluate(net, loader)) == 200  # but they are scored
    ones = estimate(net, loader, samples=50, weight=lambda batch: torch.ones(len(batch["input"])))
    assert ones.samples == 50
    with pytest.raises(EstimationError, match="all samples weigh 0"):
        estimate(net, loader.subset([0, 1, 2]))


def test_the_guard_takes_weights_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    x = torch.randn(200, 3) * 4 + 5
    np.savez("x.npz", x=x.numpy(), weight=(torch.arange(200) < 100).double().numpy())
    half = x[:100].numpy()
    np.savez("half.npz", x=half)
    whole, part = open_data("x.npz"), open_data("half.npz")
    one = decide(net, whole, weight=whole.weight)
    other = decide(net, part)
    assert one.choice == other.choice
    assert one.samples == other.samples == 100
    assert decide(net, whole).figures == one.figures  # they are the loader's own
    with pytest.raises(EstimationError, match="weight= to return a tensor"):
        decide(net, whole, weight=lambda _: torch.ones(1))
    with pytest.raises(EstimationError, match="counts all samples alike"):
        certify(net, whole)
    own, due = (adapt(net, loader)[0].running_mean for loader in (whole, part))  # type: ignore[index]
    torch.testing.assert_close(own, due)
    adapt(net, whole, guard="auto", weight=whole.weight)


def _in_job(target: str) -> dict[str, list[float]]:
    run = adapt_folder(
        "s.pt", target, arch=SIGNALS[1], guard="off", device="cpu", force=True, out="job.pt"
    )
    assert run.statistics is not None
    return {name: moments.mean.tolist() for name, moments in run.statistics.items()}


@pytest.mark.slow
def test_several_processes_find_what_one_does(here: Path) -> None:
    torch.save(factory("signals").state_dict(), "s.pt")
    write_signals()
    alone = _in_job("x.npz")
    for ended in jobs.job(2, _in_job, "x.npz"):
        assert ended.error is None, ended.error
        for name, mean in alone.items():
            np.testing.assert_allclose(ended.value[name], mean, rtol=1e-9)


def _of_its_own(_: str) -> None:
    rank = torch.distributed.get_rank()
    adapt_folder("s.pt", f"x{rank}.npz", arch=SIGNALS[1], guard="off", device="cpu", out="job.pt")


@pytest.mark.slow
def test_processes_with_other_arrays_are_told(here: Path) -> None:
    torch.save(factory("signals").state_dict(), "s.pt")
    write_signals("x0.npz")
    write_signals("x1.npz", shift=3.0)
    for ended in jobs.job(2, _of_its_own, ""):
        assert ended.error is not None
        assert "sha256 of the names in the target" in ended.error[1]


def test_an_adapted_net_of_signals_from_python() -> None:
    net = factory("signals").eval()
    x = write_signals()
    adapted = adapt(net, open_data("x.npz", batch_size=16), guard="off")
    weight = torch.where(torch.arange(90) < 30, 5.0, 1.0)
    again = adapt(net, [torch.from_numpy(x)], guard="off", weight=lambda _: weight)
    for one, other in zip(adapted.buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
