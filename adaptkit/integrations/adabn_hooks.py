"""What happens to a model's statistics before, in and after a Lightning test; no Lightning here."""

import contextlib
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn

from adaptkit import norms
from adaptkit.adaptation import target_statistics
from adaptkit.distributed.sharded import whole
from adaptkit.errors import EstimationError
from adaptkit.estimation import Statistics
from adaptkit.guard import Decision
from adaptkit.integrations.trainer_data import as_tested


class AdaBNHooks:
    """The callback, for whichever package's `Callback` stands beside it as a base.

    See `adaptkit.integrations.lightning.AdaBNCallback`.
    """

    package: ClassVar[ModuleType]  # `lightning.pytorch`, or `pytorch_lightning`

    def __init__(self, loader: Iterable[Any] | None = None, **options: Any) -> None:
        super().__init__()
        for name in ("inplace", "device"):
            if name in options:
                raise EstimationError(f"the trainer decides about {name}=: leave that out")
        self.loader, self.options = loader, options
        self.statistics: list[Statistics | None] = []
        self.decisions: list[Decision | None] = []
        self._source: dict[str, norms.Stored] | None = None
        self._applied = 0

    def on_test_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Re-estimate on what is going to be tested."""
        # No public name says how a CombinedLoader goes about its loaders.
        if self.loader is None and not getattr(trainer.test_loop, "_is_sequential", True):
            raise EstimationError(
                "a CombinedLoader whose batches mix several loaders is no one domain: give "
                "AdaBNCallback(loader) the data to adapt to"
            )
        self._start(trainer, pl_module, trainer.test_dataloaders, trainer.num_test_batches)

    def on_predict_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Re-estimate on what is going to be predicted."""
        self._start(trainer, pl_module, trainer.predict_dataloaders, trainer.num_predict_batches)

    def on_test_batch_start(
        self,
        trainer: Any,
        pl_module: nn.Module,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Change over to the statistics of the batch's own loader."""
        self._change_over(pl_module, dataloader_idx)

    def on_predict_batch_start(
        self,
        trainer: Any,
        pl_module: nn.Module,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Change over to the statistics of the batch's own loader."""
        self._change_over(pl_module, dataloader_idx)

    def on_test_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Give the source's statistics back."""
        self._end(pl_module)

    def on_predict_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Give the source's statistics back."""
        self._end(pl_module)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Give the source's statistics back."""
        self._end(pl_module)

    def _start(self, trainer: Any, module: nn.Module, loaders: Any, limits: list[float]) -> None:
        self._check(trainer, module)
        self.statistics, self.decisions = [], []
        if self.loader is None:
            combined = self.package.utilities.CombinedLoader(loaders, "sequential")
            data = list(zip(combined.flattened, limits, strict=True))
        else:
            data = [(self.loader, float("inf"))]
        with _estimating(trainer):
            for number, (loader, batches) in enumerate(data):
                samples = as_tested(trainer, module, loader, batches, number)
                statistics, decision = target_statistics(module, samples, **self.options)
                self.statistics.append(statistics)
                self.decisions.append(decision)
            layers = norms.norm_layers(module)
            self._source = {name: norms.read(layer) for name, layer in layers.items()}
        self._apply(module, 0)

    def _check(self, trainer: Any, module: nn.Module) -> None:
        strategy = type(trainer.strategy)
        if any(kind.__name__ == "DeepSpeedStrategy" for kind in strategy.__mro__):
            raise EstimationError(
                f"{strategy.__name__} may deal the model out over processes, and adapting needs "
                f"all of it in each: test the checkpoint with strategy='ddp' or 'fsdp'"
            )
        undefined = self.package.LightningModule.forward
        if "forward" not in self.options and type(module).forward is undefined:
            raise EstimationError(
                f"{type(module).__name__} has no forward: define one, or give AdaBNCallback "
                f"forward=, a function of module and batch"
            )

    def _change_over(self, module: nn.Module, dataloader_idx: int) -> None:
        wanted = dataloader_idx if self.loader is None else 0
        if wanted != self._applied:
            self._apply(module, wanted)

    def _apply(self, module: nn.Module, number: int) -> None:
        self._put_back(module)  # of another loader's, layers that this one does not set
        if (statistics := self.statistics[number]) is not None:
            statistics.apply(module)
        self._applied = number

    def _put_back(self, module: nn.Module) -> None:
        layers = norms.norm_layers(module)
        for name, stored in (self._source or {}).items():
            norms.overwrite(layers[name], stored.mean, stored.variance)

    def _end(self, module: nn.Module) -> None:
        self._put_back(module)
        self._source = None


@contextlib.contextmanager
def _estimating(trainer: Any) -> Iterator[None]:
    """Compute as the test does, but for what would outlast it or cannot be followed.

    Tensors made in inference mode could not be used in training; and compiled code does not see the
    hooks by which layers are followed.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(trainer.precision_plugin.forward_context())
        stack.enter_context(whole(trainer.strategy.model))  # FSDP's may be around the module
        yield
