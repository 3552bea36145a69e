"""Operating regimes: clusters of rows by k-means.

Lloyd (1982), "Least squares quantization in PCM"; seeding of Arthur and Vassilvitskii (2007),
"k-means++: the advantages of careful seeding", of whose candidates the best is taken, as they
suggest. Sums run in the order of the rows and never through BLAS, so the result depends on nothing
but the rows and the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.trials import Float32, Float64, Int64
from shards.errors import InvalidSpecError

_MOST_ROUNDS = 1000
"""Lloyd's rounds end by themselves; rounding might make two of them alternate."""


def find_regimes(
    rows: Float32, spread: Float64, names: Sequence[str], *, count: int, seed: int
) -> Float32:
    """Return float32 `[count, columns]`, the centres of the regimes in lexicographic order.

    Args:
        rows: `[n, columns]`, physical units; rows with a missing value are left out.
        spread: `[columns]`, what each column is scaled by; a constant column has 1.
        names: Of the columns, for the message.
        count: How many regimes.
        seed: Of the first centres.

    Raises:
        InvalidSpecError: If there are fewer different rows than regimes.
    """
    present = rows[~np.isnan(rows).any(axis=1)]
    columns = np.ascontiguousarray(present.T, np.float64) / spread[:, None]
    centres = _refine(columns, _seed_centres(columns, names, count, seed))
    physical = (centres * spread).astype(np.float32)
    return physical[np.lexsort(physical.T[::-1])]


def _seed_centres(columns: Float64, names: Sequence[str], count: int, seed: int) -> Float64:
    """Draw rows far from one another: each with the probability of its squared distance."""
    n_rows, draws = columns.shape[1], _uniform(seed)
    chosen = [int(next(draws) * n_rows)] if n_rows else []
    nearest = _distance(columns, columns[:, chosen[0]]) if n_rows else np.zeros(0)
    n_candidates = 2 + int(np.log(count))
    while len(chosen) < count:
        reached = np.cumsum(nearest)
        if not n_rows or not reached[-1] > 0:
            raise InvalidSpecError(
                f"normalize.regimes.count is {count}, but the train rows have only {len(chosen)} "
                f"different values of {', '.join(names)}. Lower count, or name other channels."
            )
        wanted = np.array([next(draws) for _ in range(n_candidates)]) * reached[-1]
        candidates = np.searchsorted(reached, wanted, side="right").clip(max=n_rows - 1)
        left = [np.minimum(nearest, _distance(columns, columns[:, c])) for c in candidates]
        best = int(np.argmin([part.sum() for part in left]))
        chosen.append(int(candidates[best]))
        nearest = left[best]
    return columns[:, chosen].T.copy()


def _uniform(seed: int) -> Iterator[float]:
    """Yield numbers in [0, 1) from the raw stream, which NumPy promises to keep."""
    bits = np.random.PCG64(seed)
    while True:
        yield (int(bits.random_raw()) >> 11) * 2.0**-53


def _refine(columns: Float64, centres: Float64) -> Float64:
    """Move centres to the means of the rows nearest to them until no row changes its centre."""
    before = np.full(columns.shape[1], -1, np.int64)
    for _ in range(_MOST_ROUNDS):
        nearest = _assign(columns, centres)
        if np.array_equal(nearest, before):
            break
        before = nearest
        n = np.bincount(nearest, minlength=len(centres)).astype(np.float64)
        sums = [np.bincount(nearest, column, minlength=len(centres)) for column in columns]
        means = np.stack(sums, axis=1) / np.maximum(n, 1.0)[:, None]
        centres = np.where(n[:, None] > 0, means, centres)  # one without rows stays where it is
    return centres


def _assign(columns: Float64, centres: Float64) -> Int64:
    """Return the number of the nearest centre of each row; of equally near ones the lowest."""
    best = np.full(columns.shape[1], np.inf)
    nearest = np.zeros(columns.shape[1], np.int64)
    for number, centre in enumerate(centres):
        far = _distance(columns, centre)
        nearer = far < best
        best[nearer], nearest[nearer] = far[nearer], number
    return nearest


def _distance(columns: Float64, centre: Float64) -> Float64:
    """Return the squared distance of each row to a centre."""
    far = np.zeros(columns.shape[1])
    for column, level in zip(columns, centre, strict=True):
        far += (column - level) ** 2
    return far
