"""Models whose parameters are dealt out over processes find what a plain model in one does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from jobs import job, values
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

import adaptkit
from adaptkit import norms
from adaptkit.errors import CheckpointError, DistributedError, ModelError
from adaptkit.features import features

N = 41


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 3, N).view(-1, 1, 1, 1)
    return torch.randn(N, 3, 9, 9, generator=generator) * scales


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
            nn.BatchNorm1d(4),
        )
        for p in made.parameters():
            nn.init.normal_(p, std=0.5)
    return made.eval()


def by_fully_shard(model: nn.Sequential) -> nn.Module:
    """Deal out the norm layers too, by themselves, with others, and with the root."""
    for part in (model[1], model[3], [model[6], model[7]]):
        fully_shard(part)
    fully_shard(model)
    return model


def by_wrappers(model: nn.Sequential, *, original: bool) -> nn.Module:
    cpu = torch.device("cpu")
    wrap = partial(FullyShardedDataParallel, use_orig_params=original, device_id=cpu)
    model[1], model[3] = wrap(model[1]), wrap(model[3])
    return wrap(model)


WAYS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "fully_shard": by_fully_shard,
    "wrapped": partial(by_wrappers, original=True),
    "wrapped, flat": partial(by_wrappers, original=False),
}
Found = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def flat(statistics: adaptkit.Statistics) -> Found:
    return {name: (m.mean.numpy(), m.variance().numpy()) for name, m in statistics.items()}


def part() -> list[Tensor]:
    """Return this process's images, in very unequal numbers of batches."""
    return list(images()[4:].split(2) if dist.get_rank() else images()[:4].split(4))


def fail_at_second(model: nn.Module, batch: Tensor) -> Any:
    if dist.get_rank() and bool((batch == images()[6:8]).all()):
        raise ZeroDivisionError
    return model(batch)


def train(model: nn.Module, data: list[Tensor], *, between: bool) -> list[float]:
    """Return the losses of a few steps, with estimates between forward and backward or without."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in images()[:20].split(5):
        if between:
            adaptkit.estimate(model, data)
            with pytest.raises((ZeroDivisionError, DistributedError)):
                adaptkit.estimate(model, part(), forward=fail_at_second)
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def held(model: nn.Module) -> list[tuple[str, type, torch.Size]]:
    """Return what this process holds of a model's parameters."""
    return [(name, type(p), p.shape) for name, p in model.named_parameters()]


def all_of(way: str, resume: str) -> Any:
    model, untouched = WAYS[way](net()), WAYS[way](net())
    exact = flat(adaptkit.estimate(model, part()))
    own = DataLoader(TensorDataset(torch.cat(part())), batch_size=2)
    streamed = adaptkit.estimate(model, own, mode="stream", resume=resume)
    assert held(model) == held(untouched)
    for each in (model, untouched):  # after a forward FSDP gives most of the parameters away again
        each(images())
    assert held(model) == held(untouched)
    adapted = adaptkit.adapt(model, part(), inplace=True)
    seen = adaptkit.evaluate(adapted, part()).confidence, features(adapted, part())
    certificate = adaptkit.certify(adapted, part()).worst
    guarded = adaptkit.adapt(WAYS[way](net()), part(), guard="auto", inplace=True)
    kept = [norms.read(layer).mean.numpy() for layer in norms.norm_layers(guarded).values()]
    losses = [
        train(WAYS[way](net()), [] if dist.get_rank() else [images()], between=between)
        for between in (True, False)
    ]
    return exact, streamed.samples, seen, certificate, kept, losses


@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_fsdp_is_as_one_that_is_whole(way: str, tmp_path: Path) -> None:
    truth = flat(adaptkit.estimate(net(), [images()]))
    adapted = adaptkit.adapt(net(), [images()])
    confidence = adaptkit.evaluate(adapted, [images()]).confidence
    guarded = norms.norm_layers(adaptkit.adapt(net(), [images()], guard="auto"))
    for exact, samples, seen, certificate, kept, losses in values(
        job(2, all_of, way, str(tmp_path / "resume"))
    ):
        assert list(exact) == list(truth)
        for name, (mean, variance) in truth.items():
            np.testing.assert_allclose(exact[name][0], mean, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(exact[name][1], variance, rtol=1e-6)
        assert samples == N
        np.testing.assert_allclose(seen[0], confidence, rtol=1e-5)
        np.testing.assert_allclose(seen[1], features(adapted, [images()]), rtol=1e-4, atol=1e-6)
        assert certificate < 1e-5
        for mean, layer in zip(kept, guarded.values(), strict=True):
            np.testing.assert_allclose(mean, norms.read(layer).mean, rtol=1e-5, atol=1e-6)
        assert losses[0] == losses[1]


def refuse() -> Any:
    said = []
    for way in WAYS:
        with pytest.raises(ModelError) as error:
            adaptkit.adapt(WAYS[way](net()), part())
        said.append(str(error.value))
        with pytest.raises(CheckpointError, match=r"statistics.apply\(model\)"):
            adaptkit.save_checkpoint("nowhere.pt", WAYS[way](net()))
    mesh = init_device_mesh("cpu", (2,))
    model = net()
    parallelize_module(model[6], mesh, ColwiseParallel(output_layouts=Replicate()))
    zero = net()
    vars(zero[6].weight)["ds_tensor"] = torch.empty(0)  # what DeepSpeed's ZeRO-3 leaves of it
    for call, dealt_out in ((adaptkit.estimate, model), (adaptkit.evaluate, zero)):
        with pytest.raises(ModelError) as error:
            call(dealt_out, part())
        said.append(str(error.value))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    plain = nn.Sequential(*net())
    plain.load_state_dict(state)
    return said, flat(adaptkit.estimate(plain, part()))


def test_what_cannot_be_held_whole_is_refused_with_what_to_do() -> None:
    truth = flat(adaptkit.estimate(net(), [images()]))
    for said, found in values(job(2, refuse)):
        assert all("inplace=True" in text for text in said[:3])
        assert len(said) == 5
        for text in said[3:]:
            assert text.startswith("6.weight is dealt out over processes")
            assert "plain.load_state_dict(get_model_state_dict(model" in text
        for name, (mean, _) in truth.items():
            np.testing.assert_allclose(found[name][0], mean, rtol=1e-6, atol=1e-6)
