"""When a change of the raw files is worth a run: a pure function of what was seen before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Watch:
    """What a watcher remembers from one look to the next.

    Attributes:
        built: Listing digest that the last run was asked for.
        pending: A newer listing that may still be changing; empty if there is none.
        since_s: When `pending` was first seen, in seconds since the epoch.
    """

    built: str
    pending: str = ""
    since_s: float = 0.0

    def to_text(self) -> str:
        """Return the cursor."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Watch:
        """Parse a cursor.

        Raises:
            ValueError: If it is none.
        """
        try:
            parts = json.loads(text)
            return cls(str(parts["built"]), str(parts["pending"]), float(parts["since_s"]))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{text!r} is no cursor of this watcher; reset it.") from error


def look(watch: Watch, listing: str, *, now_s: float, quiet_s: float) -> tuple[Watch, bool]:
    """Decide whether to start a run.

    Args:
        watch: What is remembered.
        listing: Digest of the files as they are.
        now_s: Seconds since the epoch.
        quiet_s: How long the files must have stayed the same: recordings are copied one by one.

    Returns:
        What to remember, and whether to start a run for `listing`.
    """
    if listing == watch.built:
        return Watch(listing), False
    if listing != watch.pending:
        watch = Watch(watch.built, listing, now_s)
    if now_s - watch.since_s < quiet_s:
        return watch, False
    return Watch(listing), True
