"""Two processes test and predict with the callback, and each writes what it held (a script).

Its arguments: a folder, and the strategy.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def net() -> nn.Sequential:
    """Return the net that is tested."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)
    )


def main(out: Path, strategy: str) -> None:
    """Run on rank 0; Lightning starts this script anew for rank 1."""
    import lightning.pytorch as pl
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    from adaptkit.integrations.lightning import AdaBNCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.during: dict[str, Tensor] = {}

        def configure_model(self) -> None:
            if strategy == "model_parallel" and not isinstance(self.net, FSDPModule):
                assert self.device_mesh is not None
                mesh = self.device_mesh["data_parallel"]
                for part in (self.net[0], self.net[3], self.net):
                    fully_shard(part, mesh=mesh)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.net(x)
            return outputs

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.during = state(self.net)
            self(batch[0])

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.during = state(self.net)
            return self(batch[0])

    class FSDP(pl.strategies.FSDPStrategy):
        """On a CPU, where Lightning refuses to be only of the class itself."""

        def _setup_model(self, model: nn.Module) -> nn.Module:
            return FullyShardedDataParallel(
                model,
                device_id=torch.device("cpu"),
                auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
            )

    def state(module: nn.Module) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in module.named_buffers()}

    strategies: dict[str, Any] = {
        "ddp": "ddp",
        "fsdp": FSDP(),
        "model_parallel": pl.strategies.ModelParallelStrategy(2, 1),
    }

    # Of an odd number, as ranks' shares are then unlike, and in order, as they are then far apart.
    samples = torch.arange(93.0).repeat(3, 1).T * torch.tensor([1.0, -0.5, 2.0]) / 30
    torch.save(samples, out / "samples.pt")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategies[strategy],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AdaBNCallback()],
    )
    for stage in ("test", "predict"):
        module = Module()
        source = state(module.net)
        loader = DataLoader(TensorDataset(samples), batch_size=10)
        getattr(trainer, stage)(module, loader)
        held = {"source": source, "during": module.during, "after": state(module.net)}
        torch.save(held, out / f"{stage}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
