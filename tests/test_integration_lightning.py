"""The callback against `adaptkit.adapt` by hand: same statistics, same predictions, no trace."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning_ddp
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import adaptkit
from adaptkit import EstimationError
from adaptkit.norms import norm_layers

pytest.importorskip("lightning")

PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    # Lightning 2.6 with torch 2.14.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\):FutureWarning"),
]


class Setting:
    """One of the two packages, its callback, and a module class of it."""

    def __init__(self, name: str) -> None:
        self.pl: Any = import_module(PACKAGES[name])
        self.AdaBNCallback: Any = import_module(f"adaptkit.integrations.{name}").AdaBNCallback

        class Module(self.pl.LightningModule):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = net()
                self.seen: list[Tensor] = []
                self.fails = False

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.net(x)
                return out

            def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                if self.fails and batch_idx:
                    raise RuntimeError("broken")
                self.seen.append(self(batch[0]))

            def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                return self(batch[0])

        self.Module: Any = Module

    def trainer(self, *callbacks: Any, **options: Any) -> Any:
        return self.pl.Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": list(callbacks),
                **options,
            }
        )


@pytest.fixture
def lightning() -> Setting:
    return Setting("lightning")


@pytest.fixture(params=PACKAGES)
def either(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)
    )


def domain(shift: float, n: int = 90) -> Dataset[Any]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(int(shift * 10)))
    return TensorDataset(2 * x + shift, torch.zeros(n))


def batches(shift: float, n: int = 90, **options: Any) -> DataLoader[Any]:
    return DataLoader(domain(shift, n), **{"batch_size": 20, **options})


def adapted_outputs(model: nn.Module, data: Dataset[Any], **options: Any) -> Tensor:
    """Return what `adapt` by hand gives for a data set, in eval mode."""
    whole = next(iter(DataLoader(data, batch_size=1000)))
    adapted = adaptkit.adapt(model, [whole], **options).eval()
    with torch.no_grad():
        out: Tensor = adapted(whole[0])
    return out


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_test_is_of_the_adapted_model_and_leaves_the_source(either: Setting) -> None:
    module, callback = either.Module(), either.AdaBNCallback()
    before = state(module)
    tensors = {name: id(tensor) for name, tensor in module.named_buffers()}
    either.trainer(callback).test(module, batches(3.0), verbose=False)
    expected = adapted_outputs(module.net, domain(3.0))
    torch.testing.assert_close(torch.cat(module.seen), expected, rtol=0, atol=1e-6)
    by_hand = adaptkit.estimate(module, batches(3.0))
    (statistics,) = callback.statistics
    assert list(statistics) == list(by_hand) == ["net.1", "net.4"]
    for name in by_hand:
        torch.testing.assert_close(statistics[name].mean, by_hand[name].mean)
        torch.testing.assert_close(statistics[name].variance(), by_hand[name].variance())
        assert not statistics[name].mean.is_inference()  # so it can be computed with anywhere
    assert callback.decisions == [None]
    assert same(state(module), before)
    assert {name: id(tensor) for name, tensor in module.named_buffers()} == tensors
    assert module.training


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled")
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"drop_last": True}])
def test_a_prediction_is_of_the_adapted_model(either: Setting, options: dict[str, Any]) -> None:
    module = either.Module()
    before = state(module)
    expected = adapted_outputs(module.net, domain(3.0))
    found = either.trainer(either.AdaBNCallback()).predict(module, batches(3.0, **options))
    by_rows = [sorted(rows.tolist()) for rows in (torch.cat(found), expected)]
    torch.testing.assert_close(*map(torch.tensor, by_rows), rtol=0, atol=1e-6)
    assert same(state(module), before)


def test_what_the_trainer_reads_is_not_changed(lightning: Setting) -> None:
    """Persistent workers and a sampler of the user's are in the midst of a pass."""

    def predicted(*callbacks: Any, options: dict[str, Any]) -> Tensor:
        torch.manual_seed(5)
        module = lightning.Module()
        module.predict_step = lambda batch, batch_idx: batch[0]
        sampler = torch.utils.data.WeightedRandomSampler(
            torch.arange(90.0).tolist(), 50, generator=torch.Generator().manual_seed(3)
        )
        loader = batches(3.0, sampler=sampler, **options)
        return torch.cat(lightning.trainer(*callbacks).predict(module, loader))

    for options in ({}, {"num_workers": 1, "persistent_workers": True}):
        alone = predicted(options=options)
        assert len(alone) == 50
        assert torch.equal(predicted(lightning.AdaBNCallback(), options=options), alone)


def test_each_loader_is_a_domain(lightning: Setting) -> None:
    module, callback = lightning.Module(), lightning.AdaBNCallback()
    loaders = {"near": batches(1.0), "far": batches(6.0, n=50)}
    found = lightning.trainer(callback).predict(module, loaders)
    for outputs, shift, n in zip(found, (1.0, 6.0), (90, 50), strict=True):
        expected = adapted_outputs(module.net, domain(shift, n))
        torch.testing.assert_close(torch.cat(outputs), expected, rtol=0, atol=1e-6)
    assert [s.samples for s in callback.statistics] == [90, 50]


def test_a_loader_of_ones_own_is_for_all_of_them(lightning: Setting) -> None:
    module = lightning.Module()
    before = state(module)
    callback = lightning.AdaBNCallback(batches(3.0), layers="net.1")
    lightning.trainer(callback).test(module, [batches(1.0), batches(6.0)], verbose=False)
    adapted = adaptkit.adapt(module, batches(3.0), layers="net.1").eval()
    inputs = [batch[0] for shift in (1.0, 6.0) for batch in batches(shift)]
    with torch.no_grad():
        expected = adapted(torch.cat(inputs))
    torch.testing.assert_close(torch.cat(module.seen), expected, rtol=0, atol=1e-6)
    assert len(callback.statistics) == 1
    assert same(state(module), before)


def test_the_source_is_back_after_an_error(either: Setting) -> None:
    module = either.Module()
    before = state(module)
    module.fails = True
    with pytest.raises(RuntimeError, match="broken"):
        either.trainer(either.AdaBNCallback()).test(module, batches(3.0), verbose=False)
    assert same(state(module), before)
    broken = DataLoader(TensorDataset(torch.full((9, 3), torch.nan)))
    with pytest.raises(EstimationError, match="NaN or infinity"):
        either.trainer(either.AdaBNCallback(on_bad="raise")).test(
            module, [batches(3.0), broken], verbose=False
        )
    assert same(state(module), before)
    torch.nn.functional.mse_loss(module.train()(torch.randn(4, 3)), torch.zeros(4, 4)).backward()


def test_the_guard_decides_for_each_loader(lightning: Setting) -> None:
    module = lightning.Module()
    source = DataLoader(TensorDataset(torch.randn(200, 3)), batch_size=50)
    adaptkit.adapt(module, source, inplace=True)
    module.eval()
    data = [source, batches(9.0, n=200), source]
    before = state(module)
    callback = lightning.AdaBNCallback(guard="auto")
    outputs = lightning.trainer(callback).predict(module, data)
    assert callback.decisions[0].choice == "source"
    assert callback.statistics[0] is None
    assert callback.decisions[1].choice != "source"
    for loader, found in zip(data, outputs, strict=True):
        chosen = adaptkit.adapt(module, loader, guard="auto").eval()
        with torch.no_grad():
            expected = torch.cat([chosen(batch[0]) for batch in loader])
        torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)
    assert same(state(module), before)


def test_options_of_adapt_go_through(lightning: Setting) -> None:
    module = lightning.Module()
    callback = lightning.AdaBNCallback(prior=30)
    found = lightning.trainer(callback).predict(module, batches(3.0))
    expected = adapted_outputs(module.net, domain(3.0), prior=30)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_batches_pass_the_hooks_of_module_and_data_module(lightning: Setting) -> None:
    class Halving(lightning.Module):  # type: ignore[misc,name-defined]
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] / 2, batch[1]]

    class Shifting(lightning.pl.LightningDataModule):  # type: ignore[misc,name-defined]
        def test_dataloader(self) -> DataLoader[Any]:
            return batches(3.0)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 5, batch[1]]

    module, callback = Halving(), lightning.AdaBNCallback()
    lightning.trainer(callback).test(module, datamodule=Shifting(), verbose=False)
    x, y = domain(3.0).tensors  # type: ignore[attr-defined]
    expected = adapted_outputs(module.net, TensorDataset((x + 5) / 2, y))
    torch.testing.assert_close(torch.cat(module.seen), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"limit_predict_batches": 2}, {"fast_dev_run": 2}])
def test_fewer_batches_are_fewer_samples(lightning: Setting, options: dict[str, Any]) -> None:
    module, callback = lightning.Module(), lightning.AdaBNCallback()
    found = lightning.trainer(callback, **options).predict(module, batches(3.0))
    assert sum(map(len, found)) == callback.statistics[0].samples == 40
    stream = DataLoader(Endless(), batch_size=20)
    lightning.trainer(callback, **options).predict(module, stream)
    assert callback.statistics[0].samples == 40


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(2)
        while True:
            yield torch.randn(3, generator=generator), 0


class Finite(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Any]:
        return iter(domain(3.0, 30))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_read_twice(lightning: Setting, workers: int) -> None:
    module = lightning.Module()
    loader = DataLoader(Finite(), 20, num_workers=workers, persistent_workers=bool(workers))
    found = lightning.trainer(lightning.AdaBNCallback()).predict(module, loader)
    expected = adapted_outputs(module.net, domain(3.0, 30))
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)


class Once(IterableDataset[Tensor]):
    def __iter__(self) -> "Once":
        return self

    def __next__(self) -> Any:
        return torch.zeros(3), 0


@pytest.mark.parametrize("make", [lambda: iter(batches(3.0)), lambda: DataLoader(Once(), 20)])
def test_an_iterator_is_refused(lightning: Setting, make: Any) -> None:
    trainer = lightning.trainer(lightning.AdaBNCallback(), limit_test_batches=2)
    with pytest.raises(EstimationError, match="an iterator can be read once"):
        trainer.test(lightning.Module(), make(), verbose=False)


def test_mixed_loaders_are_refused(lightning: Setting) -> None:
    mixed = lightning.pl.utilities.CombinedLoader([batches(1.0), batches(3.0)], "max_size")
    module = lightning.Module()
    with pytest.raises(EstimationError, match="mix several loaders"):
        lightning.trainer(lightning.AdaBNCallback()).test(module, mixed, verbose=False)
    module.test_step = lambda batch, batch_idx: module.seen.append(module(batch[0][0]))
    callback = lightning.AdaBNCallback(batches(3.0))
    lightning.trainer(callback).test(module, mixed, verbose=False)
    assert callback.statistics[0].samples == 90


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_computes_in_the_trainers_precision(lightning: Setting, precision: Any) -> None:
    module, callback = lightning.Module(), lightning.AdaBNCallback()
    lightning.trainer(callback, precision=precision).test(module, batches(3.0), verbose=False)
    assert {out.dtype for out in module.seen} == {torch.bfloat16}
    by_hand, whole = net().to(module.dtype), torch.cat([b[0] for b in batches(3.0)])
    mixed = precision == "bf16-mixed"
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        expected = adaptkit.estimate(by_hand, [whole.to(module.dtype)])
    for name, moments in expected.items():
        found = callback.statistics[0][f"net.{name}"]
        torch.testing.assert_close(found.mean, moments.mean)
        torch.testing.assert_close(found.variance(), moments.variance())


def test_a_compiled_module(lightning: Setting) -> None:
    module = lightning.Module()
    expected = adapted_outputs(module.net, domain(3.0))
    compiled = torch.compile(module, backend="eager")
    found = lightning.trainer(lightning.AdaBNCallback()).predict(compiled, batches(3.0))
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)


def test_a_module_without_forward_needs_one(lightning: Setting) -> None:
    class Bare(lightning.pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch[0])

    module = Bare()
    with pytest.raises(EstimationError, match=r"Bare has no forward: .*forward="):
        lightning.trainer(lightning.AdaBNCallback()).predict(module, batches(3.0))
    callback = lightning.AdaBNCallback(forward=lambda module, batch: module.net(batch[0]))
    found = lightning.trainer(callback).predict(module, batches(3.0))
    expected = adapted_outputs(module.net, domain(3.0))
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)


def test_deepspeed_is_refused(either: Setting) -> None:
    trainer, module = either.trainer(), either.Module()
    trainer.strategy.__class__ = type("Mine", (either.pl.strategies.DeepSpeedStrategy,), {})
    with pytest.raises(EstimationError, match=r"Mine may deal .* strategy='ddp'"):
        either.AdaBNCallback().on_predict_start(trainer, module)


@pytest.mark.parametrize("option", ["inplace", "device"])
def test_what_the_trainer_decides_is_refused(lightning: Setting, option: str) -> None:
    with pytest.raises(EstimationError, match=f"the trainer decides about {option}="):
        lightning.AdaBNCallback(**{option: True})


@pytest.mark.parametrize("name", PACKAGES)
def test_without_the_package_it_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"adaptkit.integrations.{name}", raising=False)
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(adaptkit.DependencyError, match=r"not installed .*pip install"):
        import_module(f"adaptkit.integrations.{name}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "model_parallel"])
def test_two_processes_adapt_to_all_samples(tmp_path: Path, strategy: str) -> None:
    """Each holds the statistics of the whole data set, whichever share of it is its own."""
    script = Path(lightning_ddp.__file__)
    run = subprocess.run(
        [sys.executable, script, tmp_path, strategy],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])},
    )
    assert run.returncode == 0, run.stderr
    samples = torch.load(tmp_path / "samples.pt")
    for stage in ("test", "predict"):
        by_rank = [torch.load(tmp_path / f"{stage}-{rank}.pt") for rank in range(2)]
        assert same(by_rank[0]["source"], by_rank[1]["source"])
        assert same(by_rank[0]["during"], by_rank[1]["during"])
        assert same(by_rank[0]["source"], by_rank[0]["after"])
        expected = adaptkit.adapt(lightning_ddp.net(), [samples]).state_dict()
        for name, tensor in by_rank[0]["during"].items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def test_only_norm_layers_change_in_the_meantime(lightning: Setting) -> None:
    """And a checkpoint that is written after a test holds the source's statistics."""
    module = lightning.Module()
    before = state(module)
    during: list[dict[str, Tensor]] = []
    made_here: set[bool] = set()

    class Watch(lightning.pl.Callback):  # type: ignore[misc,name-defined]
        def on_test_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            during.append(state(pl_module))
            made_here.update(buffer.is_inference() for buffer in pl_module.buffers())

    trainer = lightning.trainer(lightning.AdaBNCallback(), Watch())
    trainer.test(module, batches(3.0), verbose=False)
    changed = {name for name in before if not torch.equal(before[name], during[0][name])}
    names = norm_layers(module)
    assert changed == {f"{n}.{b}" for n in names for b in ("running_mean", "running_var")}
    assert made_here == {False}  # else training could not go on
    assert same(state(trainer.lightning_module), before)
