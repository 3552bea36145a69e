"""Hugging Face Accelerate: accelerate launch examples/accelerate_loop.py store --out run

The stream does not go through accelerator.prepare(), which would divide it a second time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from model import Forecaster, batch_loss, open_stream

from loaders.integrations import prepare_stream


def main(store: str, out: Path, epochs: int) -> None:
    """Train; save_state and load_state include the place in the epoch."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    set_seed(0)
    stream = open_stream(store)
    loader = prepare_stream(accelerator, stream)
    model = Forecaster(stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    last = out / "last"
    if last.exists():
        accelerator.load_state(str(last))
    while loader.state_dict()["epoch"] < epochs:
        for batch in loader:
            loss = batch_loss(model, batch, accelerator.num_processes)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            shown = accelerator.reduce(loss.detach(), "mean")
            accelerator.print(f"epoch {batch.epoch} step {batch.step} loss {shown:.6f}")
            if batch.step % 10 == 9 or batch.step == len(loader) - 1:
                accelerator.save_state(str(last))
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    main(**vars(parser.parse_args()))
