"""Whether a saved state of a stream may be continued here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.errors import ResumeError

_REMEDY = {
    "fingerprint": "the split holds other data; open the version it was saved with, or start anew",
    "plan": "batch_size, windows, shuffle or balance changed; use the saved ones, or start anew",
    "seed": "use the saved seed, or start anew",
}


def check_state(state: Mapping[str, Any], here: Mapping[str, Any], *, n_steps: int) -> None:
    """Compare a saved state with the stream that shall continue it.

    Args:
        state: What `TrialStream.state_dict` returned.
        here: `fingerprint`, `plan` and `seed` of this stream.
        n_steps: Its steps per epoch.

    Raises:
        ResumeError: If they differ; the message lists every difference.
    """
    lacking = [name for name in (*_REMEDY, "epoch", "step") if name not in state]
    if lacking:
        raise ResumeError(
            f"the state lacks {', '.join(lacking)}; wanted what TrialStream.state_dict() returned."
        )
    wrong = [
        f"{name}: got {state[name]}, wanted {here[name]} ({remedy})"
        for name, remedy in _REMEDY.items()
        if state[name] != here[name]
    ]
    if wrong:
        raise ResumeError("the state does not fit this stream. " + "; ".join(wrong) + ".")
    if not (int(state["epoch"]) >= 0 and 0 <= int(state["step"]) < n_steps):
        raise ResumeError(
            f"the state says epoch {state['epoch']}, step {state['step']}; wanted a step below "
            f"{n_steps}. Start anew."
        )
