"""Lightning Trainer: python examples/lightning_trainer.py store --out run

With several devices Lightning starts the processes itself. `import lightning.pytorch as pl` does
the same as below.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from model import Forecaster, batch_loss, open_stream
from pytorch_lightning.callbacks import ModelCheckpoint

from loaders import Batch, TrialStream
from loaders.integrations import stream_module


class Module(pl.LightningModule):
    """The model under Lightning."""

    def __init__(self, stream: TrialStream) -> None:
        super().__init__()
        self.model = Forecaster(stream)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """Return the loss; Lightning takes the mean over the ranks."""
        loss = batch_loss(self.model, batch, self.trainer.world_size)
        self.log("loss", loss, batch_size=len(batch))
        shown = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")
        if self.trainer.is_global_zero:
            print(f"epoch {batch.epoch} step {batch.step} loss {shown:.6f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(store: str, out: Path, epochs: int) -> None:
    """Train; Lightning's checkpoints hold the place in the epoch."""
    pl.seed_everything(0)
    stream = open_stream(store)
    saved = ModelCheckpoint(
        out, every_n_train_steps=10, save_last=True, save_on_train_epoch_end=True
    )
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[saved], default_root_dir=out, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = out / "last.ckpt"
    trainer.fit(
        Module(stream), datamodule=stream_module(stream), ckpt_path=last if last.exists() else None
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    main(**vars(parser.parse_args()))
