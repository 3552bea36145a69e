"""What `verify` finds."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN_TRIALS = 5


@dataclass(frozen=True)
class Problem:
    """One broken promise.

    Attributes:
        where: File or shard.
        message: What was found and what was wanted.
        trials: Ids of the trials it touches, the first few.
    """

    where: str
    message: str
    trials: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        trials = f" (trials: {', '.join(self.trials)})" if self.trials else ""
        return f"{self.where}: {self.message}{trials}"
