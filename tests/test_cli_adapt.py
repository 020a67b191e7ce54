"""`adaptkit adapt` as its user meets it: results, and one clear line for each thing wrong."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from reference import by_definition, worst_error
from safetensors.torch import load_file
from torchvision.models import resnet18

from adaptkit import Transform, image_folder, load_checkpoint, save_checkpoint
from adaptkit.models import SmallCNN
from adaptkit.norms import norm_layers
from cli import main, options

CLASSES = ("cat", "dog", "emu")
GREY = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


def write_images(folder: Path, count: int, *, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:03}.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with source.pt, target/CLASS/*.png and flat/*.png."""
    torch.manual_seed(0)
    model = SmallCNN(in_channels=1, num_classes=3)
    save_checkpoint(
        tmp_path / "source.pt",
        model,
        arch="adaptkit:small_cnn",
        arch_kwargs={"in_channels": 1, "num_classes": 3},
        classes=CLASSES,
        transform=GREY,
    )
    for seed, name in enumerate(CLASSES):
        write_images(tmp_path / "target" / name, 12, seed=seed)
    write_images(tmp_path / "flat", 30)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapt(*args: str, source: str = "source.pt", target: str = "target") -> Result:
    line = ["adapt", "--source", source, "--target", target, "--device", "cpu", *args]
    return CliRunner().invoke(main, line)


def fails(message: str, *args: str, source: str = "source.pt", target: str = "target") -> None:
    """Hold a run to one line on stderr, a status of 1 or 2, and an untouched folder."""
    before = files()
    result = adapt(*args, source=source, target=target)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not result.stdout
    assert files() == before


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file() and not p.is_symlink()}


def record(name: str = "source-adapted.json") -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(name).read_text())
    return found


# What it makes.


def test_class_folders(here: Path) -> None:
    source = (here / "source.pt").read_bytes()
    result = adapt("--guard", "off")
    assert result.exit_code == 0, result.output
    assert "Adapted 4 norm layers on 36 of 36 images" in result.stdout
    written = result.stdout.split("Wrote")[1].split()
    assert written == [
        f"source-adapted{end}" for end in (".pt", ".csv", ".json", ".html", "-confusion.csv")
    ]
    assert all(Path(name).is_file() for name in written)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert (here / "source.pt").read_bytes() == source

    frame = pd.read_csv("source-adapted.csv")
    accuracy = frame[frame.metric == "accuracy"].iloc[0]
    assert accuracy.n == 36
    assert frame[frame.metric == "symmetric_kl"].after.eq(0).all()
    assert len(frame[frame.metric == "symmetric_kl"]) == 5

    before, after = (torch.load(f"{n}.pt", weights_only=True) for n in ("source", "source-adapted"))
    assert list(before["state_dict"]) == list(after["state_dict"])
    changed = [
        k for k, v in before["state_dict"].items() if not torch.equal(v, after["state_dict"][k])
    ]
    assert len(changed) == 8
    assert all("running" in k for k in changed)
    assert after["adapted"]["samples"] == 36
    assert after["adapted"]["sha256"] == load_checkpoint("source.pt").sha256


def test_the_adapted_file_holds_the_definition(here: Path) -> None:
    assert adapt("--batch-size", "5", "--guard", "off").exit_code == 0
    source, adapted = load_checkpoint("source.pt"), load_checkpoint("source-adapted.pt")
    x = torch.cat([batch[0] for batch in image_folder("target", transform=GREY, classes=CLASSES)])
    truth = by_definition(source.model, list(norm_layers(source.model)), x)
    stored = {
        k: (m.running_mean.double().numpy(), m.running_var.double().numpy())  # type: ignore[operator]
        for k, m in norm_layers(adapted.model).items()
    }
    assert max(worst_error(stored, truth)) < 1e-5


@pytest.mark.parametrize("nested", [False, True])
def test_without_labels_there_is_no_accuracy(here: Path, nested: bool) -> None:
    if nested:
        (here / "flat").rename(here / "night")
        (here / "flat").mkdir()
        (here / "night").rename(here / "flat" / "night")
    result = adapt("--guard", "off", target="flat")
    assert result.exit_code == 0, result.output
    assert "No labels, so the accuracy is not known" in result.stdout
    metrics = set(pd.read_csv("source-adapted.csv").metric)
    assert metrics == {
        *("confidence_mean", "entropy_mean", "agreement", "predicted_share"),
        *("symmetric_kl", "mean_shift", "log_var_shift", "statistic_se"),
    }
    assert not Path("source-adapted-confusion.csv").exists()
    assert ("named like a class" in " ".join(result.stdout.split())) == nested


def test_batch_size_and_file_names_do_not_matter(here: Path) -> None:
    for i, path in enumerate(sorted((here / "target").rglob("*.png"))):
        other = here / "shuffled" / path.parent.name / f"{(i * 7919) % 997:03}.png"
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other)
    found = []
    for name, target, size in [
        ("a", "target", "7"),
        ("b", "target", "64"),
        ("c", "shuffled", "36"),
    ]:
        assert adapt("--out", f"{name}.pt", "--batch-size", size, target=target).exit_code == 0
        found.append(torch.load(f"{name}.pt", weights_only=True)["state_dict"])
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[2][key], found[0][key], rtol=1e-5, atol=1e-6)


def test_the_same_command_gives_the_same_bytes(here: Path) -> None:
    states = []
    for name in "ab":
        assert adapt("--out", f"{name}.pt", "--samples", "20", "--seed", "4").exit_code == 0
        states.append(torch.load(f"{name}.pt", weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert record("a.json")["samples"]["estimated"] == 20  # type: ignore[index]


def test_safetensors_in_and_out(here: Path) -> None:
    assert adapt("--out", "one.safetensors").exit_code == 0
    assert adapt("--out", "two.safetensors", source="one.safetensors").exit_code == 0
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert load_checkpoint("two.safetensors").adapted["source"] == "one.safetensors"  # type: ignore[index]


@pytest.mark.slow
def test_a_plain_torchvision_state_dict(here: Path) -> None:
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), "plain.pth")
    result = adapt("--guard", "off", source="plain.pth")
    assert result.exit_code == 0, result.output
    note = "recognised torchvision:resnet18, 3 classes."
    assert result.output.count("ecognised") == result.output.count(f"Note: {note}\n") == 1
    assert note in record("plain-adapted.json")["notes"]  # type: ignore[operator]
    assert record("plain-adapted.json")["checkpoint"] == {
        "sha256": load_checkpoint("plain.pth").sha256,
        "arch": "torchvision:resnet18",
        "arch_kwargs": {"num_classes": 3},
        "adapted": None,
    }
    model = resnet18(num_classes=3)
    model.load_state_dict(torch.load("plain-adapted.pth", weights_only=True))
    before = torch.load("plain.pth", weights_only=True)
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])
    assert torch.equal(model.fc.weight, before["fc.weight"])
    # No names in the file: the folders count as torchvision's ImageFolder would number them.
    assert "accuracy" in set(pd.read_csv("plain-adapted.csv").metric)


@pytest.mark.slow
def test_the_same_state_dict_as_training_in_parallel_wrote_it(here: Path) -> None:
    state = {f"module.{k}": v for k, v in resnet18(num_classes=3).state_dict().items()}
    torch.save({"epoch": 2, "state_dict": state}, "trained.pth")
    result = adapt("--guard", "off", source="trained.pth")
    assert result.exit_code == 0, result.output
    assert "Note: recognised torchvision:resnet18, 3 classes.\n" in result.output
    arch = ["--arch", "torchvision:resnet18", "--guard", "off"]
    named = adapt(*arch, "--out", "named.pth", source="trained.pth")
    assert "ecognised" not in named.output
    one, two = (torch.load(p, weights_only=True) for p in ("trained-adapted.pth", "named.pth"))
    assert [*one["state_dict"]] == [*state]
    assert all(torch.equal(v, two["state_dict"][k]) for k, v in one["state_dict"].items())


def test_quiet_prints_nothing(here: Path) -> None:
    result = adapt("--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_json_has_what_it_takes_to_repeat_the_run(here: Path) -> None:
    assert adapt("--seed", "5").exit_code == 0
    found = record()
    assert found["schema"] == 1
    assert {"versions", "arguments", "seed", "device", "checkpoint", "samples", "skipped"} <= set(
        found
    )
    assert found["seed"] == 5
    assert found["checkpoint"]["sha256"] == load_checkpoint("source.pt").sha256  # type: ignore[index]
    assert set(found["seconds"]) == {"load", "before", "estimate", "after"}  # type: ignore[call-overload]


# Images that are not as they should be.


def test_a_bad_image_is_skipped_and_named(here: Path) -> None:
    (here / "target" / "cat" / "bad.png").write_bytes(b"not an image")
    result = adapt()
    assert result.exit_code == 0, result.output
    assert "Skipped 1 that cannot be read" in result.stdout
    assert "cat/bad.png" in result.stdout
    assert list(record()["skipped"]) == ["cat/bad.png"]  # type: ignore[call-overload]
    assert record()["samples"]["evaluated"] == 36  # type: ignore[index]


def test_too_many_bad_images_stop_the_run_unless_asked(here: Path) -> None:
    for i in range(5):
        (here / "target" / "cat" / f"bad{i}.png").write_bytes(b"")
    fails("5 of 41 images cannot be read, the first being cat/bad0.png")
    assert adapt("--skip-bad").exit_code == 0


def test_one_image(here: Path) -> None:
    write_images(here / "one", 1)
    assert adapt(target="one").exit_code == 0  # the last maps are still 4 x 4
    Image.new("RGB", (32, 32)).save(here / "one" / "000.png")
    torch.save(resnet18(num_classes=3).state_dict(), "plain.pth")
    source = load_checkpoint("plain.pth", arch="torchvision:resnet18")
    save_checkpoint(
        "tiny.pt",
        source.model,
        arch="torchvision:resnet18",
        arch_kwargs={"num_classes": 3},
        transform=Transform(image_size=(32, 32)),
    )
    fails("sees 1 value a channel in all", source="tiny.pt", target="one")


# What it refuses.


def test_outputs_that_must_not_be_written(here: Path) -> None:
    assert adapt().exit_code == 0
    fails("source-adapted.pt exists already: use --force")
    assert adapt("--force").exit_code == 0
    fails("source.pt is also the input", "--out", "source.pt", "--force")
    (here / "link.pt").symlink_to("source.pt")
    fails("link.pt is also the input", "--out", "link.pt", "--force")
    os.link("source.pt", "hard.pt")
    fails("hard.pt is also the input", "--out", "hard.pt", "--force")
    fails("there is no folder missing", "--out", "missing/x.pt")
    fails(
        "Expected an output ending in .pt, .pth, .bin, .ckpt, .tar, .safetensors", "--out", "x.onnx"
    )
    fails("Expected a report ending in .csv", "--out", "x.pt", "--report", "x.txt")
    (here / "folder.pt").mkdir()
    fails("folder.pt is a folder", "--out", "folder.pt")


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    fails("cannot write /proc/x.pt", "--out", "/proc/x.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pt", None, "missing.pt"),
        ("empty.pt", b"", "empty.pt"),
        ("text.pt", b"these are not weights\n", "text.pt"),
        ("text.safetensors", b"these are not weights\n", "text.safetensors"),
    ],
)
def test_files_that_are_no_checkpoints(
    here: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    fails(message, source=name)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_code_in_a_pickle_does_not_run(here: Path) -> None:
    Path("evil.pt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    fails("evil.pt", source="evil.pt")
    torch.save({"format": "adaptkit/1", "state_dict": Evil()}, "evil2.pt")
    fails("evil2.pt", source="evil2.pt")
    assert not Path("executed").exists()


def changed_checkpoint(**changes: object) -> str:
    content = torch.load("source.pt", weights_only=True)
    content.update(changes)
    torch.save(content, "changed.pt")
    return "changed.pt"


def test_checkpoints_that_do_not_fit(here: Path) -> None:
    content = Path("source.pt").read_bytes()
    Path("short.pt").write_bytes(content[: len(content) // 2])
    fails("short.pt", source="short.pt")
    fails("adaptkit/2", source=changed_checkpoint(format="adaptkit/2"))
    state = torch.load("source.pt", weights_only=True)["state_dict"]
    torch.save(state, "plain.pt")
    fails("how images are prepared", source="plain.pt")
    first = next(iter(state))
    fewer = {k: v for k, v in state.items() if k != first}
    fails(first, source=changed_checkpoint(state_dict=fewer))
    fails(
        f"looks like adaptkit:small_cnn with 3 classes; 1 key differs: missing {first}: ",
        source=changed_checkpoint(state_dict=fewer, arch=None),
    )
    torch.save({"w": state[first]}, "plain.pt")
    fails("resembles none of the known ones: give --arch", source="plain.pt")
    fails(
        "extra.weight",
        source=changed_checkpoint(state_dict={**state, "extra.weight": state[first]}),
    )
    misshaped = {**state, first: torch.zeros(2, 2)}
    fails("(2, 2)", source=changed_checkpoint(state_dict=misshaped))
    variance = next(k for k in state if k.endswith("running_var"))
    poisoned = {**state, variance: state[variance] * torch.nan}
    fails(variance.removesuffix(".running_var"), source=changed_checkpoint(state_dict=poisoned))


def test_a_model_without_statistics(here: Path) -> None:
    from torchvision.models import convnext_tiny

    torch.save(convnext_tiny(num_classes=3).state_dict(), "norms.pth")
    fails("LayerNorm2d", "--arch", "torchvision:convnext_tiny", source="norms.pth")


def test_folders_that_cannot_be_a_target(here: Path) -> None:
    fails("nowhere", target="nowhere")
    (here / "empty").mkdir()
    fails("empty", target="empty")
    fails("source.pt", target="source.pt")
    (here / "target" / "emu").rename(here / "target" / "gnu")
    fails("gnu", target="target")
    before = files()
    assert "cat, dog, emu" in adapt().stderr
    assert files() == before


def test_a_device_that_is_not_there(here: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    fails("no device 'cuda' on this machine", "--device", "cuda")
    fails("no device 'warp'", "--device", "warp")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--samples", "0"),
        ("--samples", "some"),
        ("--batch-size", "0"),
        ("--seed", "-1"),
        ("--x", "1"),
    ],
)
def test_options_out_of_range_are_one_line(here: Path, option: str, value: str) -> None:
    fails(option, option, value)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(here: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from cli import main\n"
        "main(['adapt', '--source', 'source.pt', '--target', 'target', '--device', 'cpu'])\n"
    )
    before = files()
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("Error: cannot write source-adapted.pt")
    assert files() == before


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_and_exits_130(here: Path) -> None:
    for name in CLASSES:
        write_images(here / "target" / name, 2000)
    # It says so once images are read: an import that is under way can swallow the signal.
    # A shell that runs the tests in the background has them, and all they start, ignore it.
    program = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from adaptkit.data import listing\n"
        "from cli import main\n"
        "decode, count = listing.decode, iter(range(10**9))\n"
        "def noted(*path):\n"
        "    if next(count) == 20:\n"
        "        print('ready', flush=True)\n"
        "    return decode(*path)\n"
        "listing.decode = noted\n"
        "main(['adapt', '--source', 'source.pt', '--target', 'target', '--samples', 'all'])\n"
    )
    before = set(files())
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors.split() == ["Interrupted."]
    assert set(files()) == before


def test_a_missing_option_is_one_line(here: Path) -> None:
    result = CliRunner().invoke(main, ["adapt", "--source", "x.pt"])
    assert result.exit_code == 2
    assert result.stderr == "Error: Missing option '--target'.\n"


# Packs and the options of estimation.


def test_a_domain_pack_turns_the_base_into_the_domain(here: Path) -> None:
    assert adapt("--out", "direct.pt").exit_code == 0
    result = adapt("--stats-only")
    assert result.exit_code == 0, result.output
    assert "Wrote\n  source-statistics.safetensors\n" in result.stdout
    assert Path("source-statistics.safetensors").stat().st_size < 10_000
    line = ["apply", "--source", "source.pt", "--stats", "source-statistics.safetensors", "--out"]
    result = CliRunner().invoke(main, [*line, "applied.pt"])
    assert result.exit_code == 0, result.output
    assert result.output == "Wrote applied.pt: 4 norm layers from 36 images\n"
    direct, applied = (
        torch.load(f"{n}.pt", weights_only=True)["state_dict"] for n in ("direct", "applied")
    )
    assert all(torch.equal(direct[k], applied[k]) for k in direct)
    again = CliRunner().invoke(main, [*line, "applied.pt"])
    assert again.stderr.startswith("Error: applied.pt exists already")
    over = CliRunner().invoke(main, [*line, "source.pt", "--force"])
    assert "is also the input" in over.stderr


def test_a_pack_of_another_model_is_refused(here: Path) -> None:
    assert adapt("--stats-only").exit_code == 0
    save_checkpoint(
        "other.pt",
        SmallCNN(in_channels=1, num_classes=3),
        arch="adaptkit:small_cnn",
        arch_kwargs={"in_channels": 1, "num_classes": 3},
    )
    before = files()
    line = ["apply", "--source", "other.pt", "--stats", "source-statistics.safetensors"]
    result = CliRunner().invoke(main, [*line, "--out", "x.pt"])
    assert result.exit_code == 1
    assert "was made for another model than other.pt" in result.stderr
    assert files() == before


def test_the_same_weights_in_another_container_take_the_pack(here: Path) -> None:
    assert adapt("--stats-only").exit_code == 0
    source = load_checkpoint("source.pt")
    save_checkpoint("source.safetensors", source.model, like=source)
    line = ["apply", "--source", "source.safetensors", "--stats", "source-statistics.safetensors"]
    assert CliRunner().invoke(main, [*line, "--out", "x.safetensors"]).exit_code == 0


def test_names_are_no_formulas_in_the_csv(here: Path) -> None:
    Path("target/cat").rename("target/=1+1")
    Path("names.txt").write_text("=1+1\ndog\nemu\n")
    result = adapt("--classes", "names.txt", "--out", "named-adapted.pt")
    assert result.exit_code == 0, result.output
    for path in ("named-adapted.csv", "named-adapted-confusion.csv"):
        text = Path(path).read_text(encoding="utf-8")
        assert "=1+1" in text
        assert not re.search(r"(^|,)[\"]?=", text, re.MULTILINE)


def test_json_stands_alone_on_stdout(here: Path) -> None:
    result = adapt("--json")
    assert result.exit_code == 0, result.output
    assert result.stdout == Path("source-adapted.json").read_text(encoding="utf-8")
    assert json.loads(result.stdout)["rows"][0]["metric"] == "accuracy"
    assert result.stderr == ""
    fails("source-adapted.pt", "--json")


def test_options_reach_the_estimate(here: Path) -> None:
    args = ["--layers", "features.1", "--layers", "features.4", "--prior", "12", "--certify"]
    args += ["--precision", "fp32", "--memory", "1GiB", "--guard", "off"]
    result = adapt(*args)
    assert result.exit_code == 0, result.output
    assert "Adapted 2 norm layers" in result.stdout
    assert "Certificate" in result.stdout
    assert record()["certificate"]["worst"] < 1e-5  # type: ignore[index]
    found = record()
    assert found["layers"]["adapted"] == ["features.1", "features.4"]  # type: ignore[index]
    assert found["arguments"]["memory"] == 2**30  # type: ignore[index]
    frame = pd.read_csv("source-adapted.csv")
    assert (frame.metric == "certificate").sum() == 1
    # Blended statistics lie between the source's and the target's.
    whole = frame.query("metric == 'symmetric_kl' and scope == 'layer:features.1'").iloc[0]
    assert 0 < whole.after < whole.before


def test_certificate_tolerance_and_stream(here: Path) -> None:
    assert adapt("--certify", "--guard", "off", "--out", "a.pt").exit_code == 0
    assert record("a.json")["certificate"]["worst"] < 1e-5  # type: ignore[index]
    assert adapt("--tolerance", "5", "--guard", "off", "--out", "b.pt").exit_code == 0
    assert record("b.json")["statistics"]["tolerance"] == 5  # type: ignore[index]
    frame = pd.read_csv("b.csv").query("metric == 'statistic_se'")
    assert len(frame) == 5
    result = adapt("--mode", "stream", "--guard", "off", "--out", "c.pt")
    assert "approximation" in result.stdout
    assert record("c.json")["statistics"]["mode"] == "stream"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "expected"), [("10", 10), ("2KB", 2000), ("1.5 MiB", 3 * 2**19), ("4g", 4 * 10**9)]
)
def test_sizes(text: str, expected: int) -> None:
    assert options.size(None, None, text) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [["--memory", "much"], ["--memory", "0"], ["--tolerance", "0"]])
def test_estimation_options_out_of_range(here: Path, option: list[str]) -> None:
    fails(option[0], *option)


def test_layers_that_are_not_there(here: Path) -> None:
    fails("no norm layer is named 'layer9'", "--layers", "layer9")
