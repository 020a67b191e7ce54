"""Features of a layer, figures of images, and the words on what moved."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor, nn
from torchvision.models import resnet18

from adaptkit import DataError, compare, estimate, evaluate
from adaptkit.features import features
from adaptkit.norms import norm_layers, read
from adaptkit.report import (
    IMAGES,
    Report,
    figure_rows,
    input_rows,
    moved_layers,
    unknown_metrics,
    verdict,
)
from adaptkit.report.layers import layer_rows, target_of
from adaptkit.shift.images import image_figures


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=5).eval()
    return model


def test_the_default_is_what_the_last_linear_layer_gets(net: nn.Module) -> None:
    x = torch.randn(6, 3, 32, 32)
    found = features(net, x.split(4))
    assert found.shape == (6, 512)
    assert found.dtype == np.float32
    with torch.no_grad():
        logits = net(x)
        again = net.get_submodule("fc")(torch.from_numpy(found))
    torch.testing.assert_close(again, logits)


def test_a_named_layer_is_averaged_over_its_map(net: nn.Module) -> None:
    x = torch.randn(3, 3, 32, 32)
    found = features(net, [x], layer="layer1")
    with torch.no_grad():
        stem = net.get_submodule("maxpool")(
            torch.relu(net.get_submodule("bn1")(net.get_submodule("conv1")(x)))
        )
        expected = net.get_submodule("layer1")(stem).mean((2, 3))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was(net: nn.Module) -> None:
    net.train()
    features(net, [torch.randn(2, 3, 32, 32)])
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    net.eval()


def test_layers_that_cannot_be_taken(net: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(DataError, match="no layer 'layer9'; its last ones are"):
        features(net, [x], layer="layer9")
    with pytest.raises(DataError, match=r"'layer1\.0\.relu' 2 times, expected once"):
        features(net, [x], layer="layer1.0.relu")
    for nothing in ([], [x[:0]]):
        with pytest.raises(DataError, match="the loader is empty"):
            features(net, nothing)
    with pytest.raises(DataError, match="neither a linear nor a norm layer"):
        features(nn.Sequential(nn.ReLU()), [x])


def test_a_model_without_a_linear_layer_gives_its_last_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    assert features(model, [torch.randn(5, 3, 8, 8)]).shape == (5, 4)


class Tokens(nn.Module):
    """A linear layer that gets its input by name and one vector a token."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(input=x)).mean(1)


def test_a_linear_layers_features_come_last() -> None:
    x, model = torch.randn(3, 7, 5), Tokens()
    np.testing.assert_allclose(features(model, [x]), x.mean(1), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(features(model, [x], layer="head"), expected, rtol=1e-5, atol=1e-7)


def test_image_figures() -> None:
    x = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    found = image_figures(x)
    grey = np.einsum("nchw,c->nhw", x.double().numpy(), [0.299, 0.587, 0.114])
    np.testing.assert_allclose(found["brightness"], grey.mean((1, 2)))
    np.testing.assert_allclose(found["contrast"], grey.std((1, 2)))
    inner = [ndimage.laplace(image)[1:-1, 1:-1].var() for image in grey]
    np.testing.assert_allclose(found["sharpness"], inner)
    np.testing.assert_allclose(found["std_2"], x.double().numpy()[:, 2].std((1, 2)))
    assert image_figures(x[:, :1, :2, :2])["sharpness"].tolist() == [0.0] * 4
    with pytest.raises(DataError, match="images of shape"):
        image_figures(x[0])


def figures(images: int, shift: float, seed: int) -> dict[str, np.ndarray]:
    return image_figures(
        torch.rand(images, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) + shift
    )


def test_rows_on_images() -> None:
    source, moved = figures(40, 0.0, 0), figures(30, 0.1, 1)
    found = {(row.metric, row.scope): row for row in input_rows(source, moved)}
    one = found["input_shift", f"{IMAGES}.brightness"]
    brightness = source["brightness"]
    expected = (moved["brightness"].mean() - brightness.mean()) / brightness.std(ddof=1)
    assert one.before == one.after == pytest.approx(expected)  # AdaBN leaves the images alone
    assert (one.change, one.n, one.ci_low, one.p_value) == (0, 30, None, None)
    p_value = found["input_shift_p", f"{IMAGES}.brightness"]
    exact = stats.ks_2samp(brightness, moved["brightness"], method="exact").pvalue
    assert p_value.before == pytest.approx(exact)
    metrics = {metric for metric, scope in found if scope == IMAGES}
    assert metrics >= {"mmd2", "energy", "frechet", "coral", "c2st_auc", "ks_fraction", "mmd2_p"}
    assert (found["mmd2_p", IMAGES].before or 1) < 0.01
    back = {(row.metric, row.scope): row for row in input_rows(source, moved, source)}
    assert back["input_shift", f"{IMAGES}.brightness"].after == 0
    assert back["mmd2_p", IMAGES].after == 1


def test_rows_of_few_images() -> None:
    one = figures(1, 0.0, 0)
    found = {(row.metric, row.scope): row for row in input_rows(one, figures(3, 0.1, 1))}
    assert found["input_shift", f"{IMAGES}.contrast"].before is None  # one has no spread
    assert found["input_shift_p", f"{IMAGES}.contrast"].before is not None
    assert ("energy", IMAGES) in found
    few = ["mmd2", "frechet", "coral", "proxy_a_distance", "c2st_auc"]
    assert unknown_metrics(1, 3) == few
    assert not [metric for metric, scope in found if scope == IMAGES and metric in few]
    assert list(figure_rows({"width": np.ones(3)}, {"width": np.ones(0)})) == []


def report_of(shift: float, channels: int = 8, images: int = 300) -> tuple[str, dict[str, float]]:
    """A model whose statistics are those of a large sample, and a target moved by `shift`."""
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, 3), nn.BatchNorm1d(3))
    large = torch.randn(50_000, channels, generator=g)
    estimate(model, [large], samples="all").apply(model)
    target: list[Tensor] = [torch.randn(images, channels, generator=g) + shift]
    statistics = estimate(model, target)
    before = evaluate(model, target)
    after = evaluate(statistics.apply(nn.Sequential(*model)), target)
    model_before = compare(before, after, statistics=statistics)
    return verdict(model_before, statistics), moved_layers(model_before, statistics)


def test_words_on_what_moved() -> None:
    said, layers = report_of(0.0)
    assert said.startswith("No layer of 2 sees anything that differs")
    assert not layers
    said, layers = report_of(2.0)
    # The second layer comes after one that has been adapted, and sees what it always saw.
    assert said.startswith("1 of 2 norm layers see another domain")
    assert layers["0"] == pytest.approx(4, rel=0.1)  # d² of the means, in nats
    assert f"moved most: {next(iter(layers))} (symmetric KL" in said
    # Beyond chance for so many images, but no farther than training's averages are from their own.
    assert report_of(0.08, images=2000)[0].startswith("No layer of 2 sees")


def test_a_single_image_is_not_called_another_domain() -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )
    target = [torch.rand(1, 1, 8, 8, generator=g)]
    statistics = estimate(model, target)
    own = {name: read(layer) for name, layer in norm_layers(model).items()}
    report = Report(tuple(layer_rows(own, own, target_of(own, statistics))))
    assert moved_layers(report, statistics) == {}
    said = verdict(report, statistics)
    assert said.startswith("A single image cannot tell another domain from chance.")
    far = max(("1", "3"), key=lambda name: symmetric_kl_of(report, name))
    assert f"differs in most: {far} (" in said


def symmetric_kl_of(report: Report, name: str) -> float:
    row = report.row("symmetric_kl", f"layer:{name}")
    assert row is not None
    return row.before or 0.0
