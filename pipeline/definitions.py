"""The code location: every data set under `defs/`."""

import functools
import warnings
from pathlib import Path

import dagster as dg

# Dagster warns of its own use of features it calls beta or preview; nobody here can act on it.
for _category in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"dagster\.")


@dg.definitions
@functools.cache  # Dagster asks several times in a process; a reload is a new one
def defs() -> dg.Definitions:
    """Load all components; steps run in one process, since they run threads of their own."""
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(found, dg.Definitions(executor=dg.in_process_executor))
