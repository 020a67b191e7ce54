"""Two processes test and predict with the callback, and each writes what it held (a script)."""

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


def main(out: Path) -> None:
    """Run on rank 0; Lightning starts this script anew for rank 1."""
    import lightning.pytorch as pl

    from adaptkit.integrations.lightning import AdaBNCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.during: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.net(x)
            return outputs

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.during = state(self.net)
            self(batch[0])

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.during = state(self.net)
            return self(batch[0])

    def state(module: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    # Of an odd number, as ranks' shares are then unlike, and in order, as they are then far apart.
    samples = torch.arange(93.0).repeat(3, 1).T * torch.tensor([1.0, -0.5, 2.0]) / 30
    torch.save(samples, out / "samples.pt")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AdaBNCallback()],
    )
    module = Module()
    source = state(module.net)
    for stage in ("test", "predict"):
        loader = DataLoader(TensorDataset(samples), batch_size=10)
        getattr(trainer, stage)(module, loader)
        held = {"source": source, "during": module.during, "after": state(module.net)}
        torch.save(held, out / f"{stage}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
