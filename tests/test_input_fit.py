"""A gain and an offset of the input, against known ones and against numpy."""

from functools import cache
from typing import Any

import digits
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adaptkit import DataError, EstimationError, Transform, adapt, evaluate
from adaptkit.input_fit import InputFit, fit_input
from adaptkit.input_fit.misfit import misfit
from adaptkit.input_fit.stem import ResponseSums, Stem
from adaptkit.norms import norm_layers, read


@cache
def net() -> nn.Module:
    return digits.net()


def source() -> Tensor:
    """Some of what the net was trained on, as it takes it."""
    return 2 * digits.images()[0][:400] - 1


def target() -> tuple[Tensor, Tensor]:
    """Images that the net has not seen, and their labels."""
    x, y = digits.images()
    return 2 * x[-400:] - 1, y[-400:]


def accuracy(x: Tensor) -> float:
    found = evaluate(net(), [(x, target()[1])]).accuracy
    assert found is not None
    return found


# What was done to the images: their gain and offset, in the net's own unit of -1 to 1.
SHIFTS = {
    "contrast": (0.3, 0.0),
    "brightness": (1.0, 0.8),
    "darkness": (0.5, -0.9),
    "inversion": (-1.0, 0.0),
    "a pale inversion": (-0.4, 0.5),
}


@pytest.mark.parametrize("name", list(SHIFTS))
def test_what_was_done_to_the_sources_images_is_undone(name: str) -> None:
    gain, offset = SHIFTS[name]
    fit = fit_input(net(), (gain * source() + offset).split(100))
    assert fit.gain.item() == pytest.approx(1 / gain, rel=0.05)
    assert fit.offset.item() == pytest.approx(-offset / gain, abs=0.05 / abs(gain))
    assert fit.after < 0.02


@pytest.mark.parametrize("name", list(SHIFTS))
def test_new_images_are_told_as_well_as_clean_ones(name: str) -> None:
    gain, offset = SHIFTS[name]
    x = gain * target()[0] + offset
    fit = fit_input(net(), x.split(100))
    clean, spoilt, undone = (accuracy(v) for v in (target()[0], x, fit.apply(x)))
    assert undone > clean - 0.01
    assert undone > spoilt + 0.2


def test_inversion_is_beyond_adabn() -> None:
    x, y = target()
    assert (evaluate(adapt(net(), [-x]), [(-x, y)]).accuracy or 1) < 0.4


@pytest.mark.parametrize("classes", [range(10), [3, 8], [0, 1, 4]])
def test_clean_images_are_left_alone_whatever_their_classes(classes: Any) -> None:
    x, y = target()
    fit = fit_input(net(), [x[torch.isin(y, torch.tensor(list(classes)))]])
    assert not fit.changes
    assert fit.after == fit.before
    assert torch.equal(fit.apply(x), x)


def colour() -> tuple[nn.Sequential, Tensor]:
    """A net on colour images whose channels differ and go together, as photographs' do."""
    torch.manual_seed(0)
    rough = torch.rand(120, 1, 12, 12) ** 4 + 0.5 * torch.rand(120, 3, 12, 12) ** 4
    x = nn.functional.avg_pool2d(rough, 3, 1) * torch.tensor([3.0, 2, 4])[:, None, None] - 1
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
    )
    adapt(model, [x], samples="all", inplace=True)
    return model, x


@pytest.mark.parametrize("sign", [1, -1])
def test_each_colour_has_its_own_gain_and_offset(sign: int) -> None:
    model, x = colour()
    gain, offset = sign * torch.tensor([0.4, 0.9, 2.0]), torch.tensor([0.5, -1.0, 0.2])
    moved = gain[:, None, None] * x + offset[:, None, None]
    fit = fit_input(model, moved.split(50))
    np.testing.assert_allclose(fit.gain, 1 / gain, rtol=0.05)
    np.testing.assert_allclose(fit.offset, -offset / gain, atol=0.1)


def test_colours_that_cannot_be_told_apart_share_a_gain() -> None:
    """A stem that sees nothing but the sum of the three."""
    _, x = colour()
    sums = nn.Conv2d(3, 1, 1)
    nn.init.ones_(sums.weight)
    model = nn.Sequential(sums, nn.BatchNorm2d(1))
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    fit = fit_input(adapt(model, [grey], samples="all"), [0.25 * grey])
    np.testing.assert_allclose(fit.gain, [4.0, 4, 4], rtol=1e-3)


def test_many_channels_share_a_gain_and_need_be_no_image() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 20) + 1
    model = adapt(nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30)), [x], samples="all")
    fit = fit_input(model, [3 * x + 2])
    np.testing.assert_allclose(fit.gain, np.full(20, 1 / 3), rtol=1e-3)
    np.testing.assert_allclose(fit.offset, np.full(20, -2 / 3), rtol=1e-3)


@pytest.mark.parametrize("apart", [True, False])
def test_the_response_is_that_of_the_changed_images(apart: bool) -> None:
    model, x = colour()
    stem = Stem.of(model.eval(), norm_layers(model), x)
    sums = ResponseSums(stem, apart=apart)
    for batch in x.split(50):
        sums.add(batch)
    gain = np.array([-0.4, -0.9, -2.0]) if apart else np.array([-0.7])
    offset = np.array([0.5, -1.0, 0.2]) if apart else np.array([3.0])
    changed = torch.from_numpy(gain.reshape(-1, 1, 1)) * x + torch.from_numpy(
        offset.reshape(-1, 1, 1)
    )
    seen = model[0].double()(changed).detach().transpose(0, 1).flatten(1).numpy()
    mean, variance = sums.response().moments(gain, offset)
    np.testing.assert_allclose(mean, seen.mean(1), atol=1e-5)
    np.testing.assert_allclose(variance, seen.var(1, ddof=1), rtol=1e-4)


def test_the_misfit_is_that_of_the_definition() -> None:
    model, x = colour()
    x = 2 * x + 1
    model.eval()
    halves = []
    for i, layer in ((1, model[1]), (4, model[4])):
        seen = model[:i](x).detach().double().transpose(0, 1).flatten(1).numpy()
        stored = read(layer)
        m_s, v_s = stored.mean.double().numpy(), stored.variance.double().numpy() + 1e-5
        off = (seen.mean(1) - m_s) ** 2 / v_s
        halves.append((off + np.log((seen.var(1, ddof=1) + 1e-5) / v_s) ** 2).mean() / 2)
    found = misfit(model, norm_layers(model), x.split(50))
    assert found == pytest.approx(np.mean(halves), rel=1e-4)


def test_one_symmetric_layer_is_not_taken_for_inverted() -> None:
    torch.manual_seed(0)
    fit = fit_input(nn.Sequential(nn.BatchNorm2d(1)), [4 * torch.randn(20, 1, 5, 5) + 1])
    assert fit.gain.item() == pytest.approx(0.25, rel=0.1)


def test_the_model_is_left_as_it_was() -> None:
    model, x = colour()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit_input(model, [(x, torch.zeros(len(x)))])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_fit_goes_into_the_images_transform() -> None:
    fit = InputFit(torch.tensor([-2.5]), torch.tensor([0.3]), 1.0, 0.1)
    grey = Transform((8, 8), channels=1, mean=(0.4,), std=(0.3,))
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    changed = grey.then(fit.gain, fit.offset)
    torch.testing.assert_close(changed(image), fit.apply(grey(image)[None])[0])
    assert Transform.from_dict(changed.to_dict()) == changed


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


@pytest.mark.parametrize("before", [nn.ReLU(), Squares(), nn.InstanceNorm2d(3)])
def test_a_stem_that_is_not_linear_is_refused(before: nn.Module) -> None:
    model, x = colour()
    with pytest.raises(EstimationError, match=r"before '1\.1' it is not") as error:
        fit_input(nn.Sequential(before, model), [x])
    assert "\n" not in str(error.value)


def test_data_that_will_not_do() -> None:
    model, x = colour()
    broken = x.clone()
    broken[5, 0, 2, 2] = torch.nan
    for data, message in (
        ([x, broken], "NaN or infinity in samples 121 to 240"),
        ([], "got no sample"),
        ([x[:0]], "got no sample"),
        ([torch.ones(4, 3, 8, 8)], "one value throughout"),
        ([torch.ones(1, 3, 3, 3)], "one value throughout"),
        ([x.int()], r"floating inputs of shape \(N, C, ...\), got torch.int32"),
    ):
        with pytest.raises(DataError, match=message) as error:
            fit_input(model, data)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"shape \(N, 1, ...\), got \(120, 3, 10, 10\)"):
        InputFit(torch.ones(1), torch.zeros(1), 0, 0).apply(x)


def test_models_and_loaders_that_will_not_do() -> None:
    model, x = colour()
    with pytest.raises(EstimationError, match="through the data several times"):
        fit_input(model, iter([x]))
    with pytest.raises(EstimationError, match="no layer with data-set statistics"):
        fit_input(nn.Conv2d(3, 2, 1), [x])
    with pytest.raises(DataError, match="two samples or more at norm layer '0', got 1"):
        fit_input(nn.Sequential(nn.BatchNorm1d(4)), [torch.randn(1, 4)])
    model[1].register_buffer("running_mean", torch.full((12,), torch.nan))
    with pytest.raises(EstimationError, match="'1' stores statistics that are not finite"):
        fit_input(model, [x])
