"""Arrow's compute functions, loaded when the first of them is called.

Loading them takes a tenth of a second, as long as a look at ten thousand files: a build that finds
nothing to do does without.
"""

from __future__ import annotations

from typing import Any


class _Compute:
    """`pyarrow.compute`, as if it had been imported."""

    def __getattr__(self, name: str) -> Any:
        import pyarrow.compute

        return getattr(pyarrow.compute, name)


pc: Any = _Compute()
