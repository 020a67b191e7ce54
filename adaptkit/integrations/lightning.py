"""AdaBN as a callback of Lightning's Trainer (``import lightning``)."""

from types import ModuleType
from typing import ClassVar

from adaptkit.errors import DependencyError
from adaptkit.integrations.adabn_hooks import AdaBNHooks

try:
    import lightning.pytorch
except ImportError as error:
    raise DependencyError(
        f"AdaBNCallback needs lightning, which is not installed ({error}): pip install lightning, "
        f'or pip install "adaptkit[lightning]"'
    ) from None


class AdaBNCallback(AdaBNHooks, lightning.pytorch.Callback):
    """Re-estimate the normalisation statistics before `trainer.test` and `trainer.predict`.

    The module is tested with the statistics of the data that it is tested on (without their
    labels), as `adaptkit.adapt` finds them, and has its own again afterwards, also after an error:
    training goes on, and checkpoints are as without the callback. Several dataloaders are several
    domains, and each is tested with its own statistics.

    Batches come as in the test itself: in the trainer's precision, on its device, through the
    hooks for batch transfer. `limit_test_batches`, `limit_predict_batches` and `fast_dev_run` limit
    the samples as well. With several processes every sample of a data set that can be indexed
    counts once, and all processes hold the same statistics. What FSDP deals out ("fsdp",
    ModelParallelStrategy) each process holds whole while statistics are estimated, and only then;
    tensor parallelism and DeepSpeed are refused.

    Args:
        loader: what to adapt to instead of the trainer's data, all of it one domain.
        **options: of `adaptkit.adapt`: guard, calibration, prior, correction, mode, samples,
            tolerance, memory, layers, weight, precision, forward, on_bad, seed, progress.
            `forward`, a function of module and batch, is for a module without a forward of its own,
            or one that does not take what batches hold first.

    Attributes:
        statistics: of each dataloader in the last run, None where the guard kept the module's own.
            ``callback.statistics[0].apply(module)`` keeps them for good.
        decisions: of the guard for each dataloader, None where it was off.

    Raises:
        EstimationError: as `adaptkit.adapt` when a test or prediction starts; or the data can be
            read once only, the module has no forward, or the strategy is DeepSpeed's.
        ModelError: the module's parameters are dealt out by tensor parallelism.
        DependencyError: on import, lightning is not installed.

    >>> callback = AdaBNCallback(guard="auto", samples=500)
    >>> callback.statistics  # until something was tested
    []
    """

    package: ClassVar[ModuleType] = lightning.pytorch
