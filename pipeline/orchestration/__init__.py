"""The Dagster room: assets, checks, sensor and schedule around the pipeline's pure functions.

Dagster is imported here, in `pipeline/component.py`, `pipeline/definitions.py` and
`pipeline/defs/`, and nowhere else. Dagster reads annotations when functions are decorated: no
`from __future__ import annotations` in these modules.
"""
