"""A loop of your own: python examples/plain_loop.py store --out run

Stop it whenever you like; the same command goes on with the next batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import Forecaster, batch_loss, open_stream


def main(store: str, out: Path, epochs: int) -> None:
    """Train; a checkpoint after each 10th step holds model, optimizer and place in the epoch."""
    torch.manual_seed(0)
    stream = open_stream(store)
    model = Forecaster(stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    last = out / "last.pt"
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])
    out.mkdir(parents=True, exist_ok=True)
    while stream.state_dict()["epoch"] < epochs:
        for batch in stream:
            loss = batch_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"epoch {batch.epoch} step {batch.step} loss {loss.item():.6f}")
            if batch.step % 10 == 9 or batch.step == len(stream) - 1:
                state = {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "stream": stream.state_dict(batch),
                }  # fmt: skip
                torch.save(state, out / "new.pt")
                (out / "new.pt").replace(last)  # whole, or not there


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    main(**vars(parser.parse_args()))
