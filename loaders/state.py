"""Whether a saved state of a stream may be continued here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shards.errors import ResumeError

_REMEDY = {
    "fingerprint": "the split holds other data; open the version it was saved with, or start anew",
    "plan": "batch_size, windows, shuffle or balance changed, or batches, weights, target or what "
    "is mixed, or compact packed the version anew under shuffle='blocks'; use the saved ones, or "
    "start anew",
    "seed": "use the saved seed, or start anew",
}
_CHOSEN = (
    "where or trials changed, or one of them is gone or new; use the saved ones, or start anew"
)


def check_state(
    state: Mapping[str, Any], here: Mapping[str, Any], *, n_steps: Callable[[int], int]
) -> None:
    """Compare a saved state with the stream that shall continue it.

    Args:
        state: What `TrialStream.state_dict` returned.
        here: `fingerprint`, `plan` and `seed` of this stream; and `trials` of one with a filter.
        n_steps: Epoch -> its steps.

    Raises:
        ResumeError: If they differ; the message lists every difference.
    """
    if not isinstance(state, Mapping):
        raise ResumeError(f"the state is {state!r}; wanted what TrialStream.state_dict() returned.")
    lacking = [name for name in (*_REMEDY, "epoch", "step") if name not in state]
    if lacking:
        raise ResumeError(
            f"the state lacks {', '.join(lacking)}; wanted what TrialStream.state_dict() returned."
        )
    remedies = dict(_REMEDY)
    chosen = [f"{part['trials']}" if "trials" in part else "all" for part in (state, here)]
    if chosen[0] != chosen[1]:
        del remedies["plan"]  # of other trials it is another one, whatever else was asked for
    wrong = [
        f"{name}: got {state[name]}, wanted {here[name]} ({remedy})"
        for name, remedy in remedies.items()
        if state[name] != here[name]
    ]
    if chosen[0] != chosen[1]:
        wrong.append(f"trials: got {chosen[0]}, wanted {chosen[1]} ({_CHOSEN})")
    if wrong:
        raise ResumeError("the state does not fit this stream. " + "; ".join(wrong) + ".")
    epoch, step = state["epoch"], state["step"]
    sound = all(isinstance(x, int) and 0 <= x < 1 << 62 for x in (epoch, step))
    if not sound or step >= n_steps(epoch):
        wanted = f" below {n_steps(epoch)}" if sound else " of an epoch, both integers from 0 on"
        raise ResumeError(
            f"the state says epoch {epoch!r}, step {step!r}; wanted a step{wanted}. Start anew."
        )
