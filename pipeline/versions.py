"""The version of every stage that decides what a trial becomes.

Raise a stage's number when it begins to make something else of the same input: all data sets are
then built anew. They stand here, apart from the stages, because a build that finds nothing to do
must know them without loading what it will not use.
"""

from __future__ import annotations

STAGES = {
    "sources": 1,
    "reshape": 1,
    "timeline": 1,
    "derive": 2,
    "clean": 1,
    "codes": 1,
    "normalize": 2,
    "shape": 1,
    "plain": 1,
    "finish": 2,
    "prepare": 2,
    "members": 1,
    "buckets": 4,
}
