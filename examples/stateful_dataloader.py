"""torchdata's StatefulDataLoader: python examples/stateful_dataloader.py store --out run

Resumes exactly, also with another number of workers: add --workers 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import Forecaster, batch_loss, open_stream

from loaders.integrations import stateful_loader


def main(store: str, out: Path, epochs: int, workers: int) -> None:
    """Train; the loader's state is that of the last batch it handed out."""
    torch.manual_seed(0)
    stream = open_stream(store)
    loader = stateful_loader(stream, num_workers=workers)
    model = Forecaster(stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    last = out / "last.pt"
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    out.mkdir(parents=True, exist_ok=True)
    while loader.state_dict()["epoch"] < epochs:
        for batch in loader:
            loss = batch_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"epoch {batch.epoch} step {batch.step} loss {loss.item():.6f}")
            if batch.step % 10 == 9 or batch.step == len(loader) - 1:
                state = {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }  # fmt: skip
                torch.save(state, out / "new.pt")
                (out / "new.pt").replace(last)  # whole, or not there


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    main(**vars(parser.parse_args()))
