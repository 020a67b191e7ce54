"""Batch Renormalization against the paper's formulas, and against batch norm where they meet."""

import copy
import io

import numpy as np
import pytest
import torch
from reference import by_definition, worst_error
from torch import Tensor, nn

from adaptkit import AdaptkitError, adapt, certify, estimate
from adaptkit.layers import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, RenormSchedule

PAIRS = [
    (BatchRenorm1d, nn.BatchNorm1d, (6, 3)),
    (BatchRenorm1d, nn.BatchNorm1d, (6, 3, 5)),
    (BatchRenorm2d, nn.BatchNorm2d, (4, 3, 5, 2)),
    (BatchRenorm3d, nn.BatchNorm3d, (4, 3, 2, 3, 2)),
]


def filled(layer: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(1)
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(3, generator=g, dtype=tensor.dtype) + (
                0.5 if "var" in name else 0
            )
    return layer


def data(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=g, dtype=torch.float64) * 2 + 1


@pytest.mark.parametrize(("renorm", "norm", "shape"), PAIRS)
def test_without_room_it_is_batch_norm(
    renorm: type[nn.Module], norm: type[nn.Module], shape: tuple[int, ...]
) -> None:
    ours = filled(renorm(3, momentum=0.1, r_max=1.0, d_max=0.0, dtype=torch.float64))
    theirs = norm(3, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    a, b = data(*shape).requires_grad_(), data(*shape).requires_grad_()
    for _ in range(3):
        first, second = ours(a), theirs(b)
        torch.testing.assert_close(first, second)
    first.pow(3).sum().backward()
    second.pow(3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    torch.testing.assert_close(ours.eval()(a), theirs.eval()(b))


@pytest.mark.parametrize(("renorm", "shape"), [(p[0], p[2]) for p in PAIRS])
@pytest.mark.parametrize("limits", [(1.2, 0.1), (3.0, 5.0)])
def test_a_step_is_the_papers(
    renorm: type[nn.Module], shape: tuple[int, ...], limits: tuple[float, float]
) -> None:
    layer = filled(renorm(3, r_max=limits[0], d_max=limits[1], dtype=torch.float64))
    state = {k: v.numpy().copy() for k, v in layer.state_dict().items()}
    x = data(*shape)
    over = tuple(i for i in range(x.ndim) if i != 1)
    wide = (1, 3) + (1,) * (x.ndim - 2)
    mean, std = x.numpy().mean(over), np.sqrt(x.numpy().var(over) + 1e-5)
    running = np.sqrt(state["running_var"] + 1e-5)
    r = np.clip(std / running, 1 / limits[0], limits[0])
    d = np.clip((mean - state["running_mean"]) / running, -limits[1], limits[1])
    normal = (x.numpy() - mean.reshape(wide)) / std.reshape(wide)
    expected = normal * (r * state["weight"]).reshape(wide)
    expected += (d * state["weight"] + state["bias"]).reshape(wide)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-10)
    moved = 0.99 * state["running_mean"] + 0.01 * mean
    np.testing.assert_allclose(layer.state_dict()["running_mean"].numpy(), moved)
    assert int(layer.state_dict()["num_batches_tracked"]) == 1


def test_unclipped_training_is_inference() -> None:
    layer = filled(BatchRenorm2d(3, r_max=1e6, d_max=1e6, dtype=torch.float64))
    x = data(4, 3, 5, 5)
    inference = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), inference)


def test_no_gradient_flows_through_r_and_d() -> None:
    layer = filled(BatchRenorm2d(3, dtype=torch.float64))
    x = data(4, 3, 2, 2)
    state = layer.running_mean, layer.running_var, layer.num_batches_tracked
    r, d = layer._corrections(x, *state)  # type: ignore[operator]

    def explicit(x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        normal = (x - mean.view(1, 3, 1, 1)) / (var + 1e-5).sqrt().view(1, 3, 1, 1)
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        y: Tensor = normal * (r * weight).view(1, 3, 1, 1) + (d * weight + bias).view(1, 3, 1, 1)
        return y

    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(a).pow(3).sum().backward()
    explicit(b).pow(3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert torch.autograd.gradcheck(explicit, (x.requires_grad_(),))


def test_schedule() -> None:
    schedule = RenormSchedule()
    assert schedule.at(0) == (1.0, 0.0)
    assert schedule.at(15_000) == (1 + 2 * 10 / 35, 2.5)
    assert schedule.at(30_000)[1] == 5.0
    assert schedule.at(10**9) == (3.0, 5.0)
    layer = BatchRenorm1d(2, schedule=RenormSchedule(3.0, 5.0, start=1, r_end=2, d_end=2))
    plain = nn.BatchNorm1d(2)
    x = torch.randn(8, 2) * 5
    torch.testing.assert_close(layer(x), plain(x))  # the first two steps are batch norm
    torch.testing.assert_close(layer(x), plain(x))
    assert not torch.allclose(layer(x), plain(x))
    assert "RenormSchedule" in repr(layer)


def test_it_is_adapted_like_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), BatchRenorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), BatchRenorm2d(3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), BatchRenorm1d(2)),
    )
    x = torch.randn(40, 3, 8, 8) * 3 + 1
    truth = by_definition(net, ["1", "4", "8"], x)
    found = estimate(net, x.split(7))
    as_arrays = {k: (m.mean.numpy(), m.variance().numpy()) for k, m in found.items()}
    assert max(worst_error(as_arrays, truth)) < 1e-5
    assert certify(adapt(net, x.split(7)), x.split(9)).worst < 1e-5


def test_copies_files_and_other_formats() -> None:
    layer = filled(BatchRenorm2d(3, schedule=RenormSchedule()))
    x = torch.randn(2, 3, 4, 4)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    expected = copy.deepcopy(layer)(x)
    torch.testing.assert_close(again(x), expected)
    torch.testing.assert_close(
        copy.deepcopy(layer)(x.contiguous(memory_format=torch.channels_last)), expected
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            copy.deepcopy(layer)(x.bfloat16()).float(), expected, atol=0.1, rtol=0.05
        )
    for flag in (True, False):
        layer.train(flag)
        expected = copy.deepcopy(layer)(x)
        exported = torch.export.export(copy.deepcopy(layer), (x,)).module()
        torch.testing.assert_close(exported(x), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("schedule", [None, RenormSchedule(start=0, r_end=4, d_end=4)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.01, None])
def test_it_scripts(schedule: RenormSchedule | None, affine: bool, momentum: float | None) -> None:
    layer = filled(BatchRenorm2d(3, affine=affine, schedule=schedule, momentum=momentum))
    scripted = torch.jit.script(copy.deepcopy(layer))
    for step in range(3):
        x = torch.randn(2, 3, 4, 4) * (step + 1)
        torch.testing.assert_close(scripted(x), layer(x))
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(scripted.state_dict()[key], value)
    torch.testing.assert_close(scripted.eval()(x), layer.eval()(x))


def test_empty_input_teaches_nothing() -> None:
    layer = filled(BatchRenorm2d(3))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    assert layer(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert layer(torch.zeros(2, 3, 0, 4)).shape == (2, 3, 0, 4)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training: bool) -> None:
    """At r = 1 and d = 0; elsewhere r and d, which no gradient flows through, are held fixed."""
    layer = filled(BatchRenorm2d(3, r_max=1.0, d_max=0.0, dtype=torch.float64)).train(training)
    x = data(4, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_bad_input() -> None:
    with pytest.raises(AdaptkitError, match="r_max of 1 or more"):
        BatchRenorm2d(3, r_max=0.5)
    with pytest.raises(AdaptkitError, match="before r_end"):
        RenormSchedule(start=50_000)
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D input\)"):
        BatchRenorm2d(3)(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchRenorm1d(3)(torch.randn(1, 3))
    assert BatchRenorm2d(3)(torch.randn(1, 3, 2, 2)).isfinite().all()
