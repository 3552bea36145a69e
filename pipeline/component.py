"""`TrialDataset`: a `dataset.yaml` and a training configuration as a Dagster asset graph.

```yaml
type: pipeline.component.TrialDataset
attributes:
  dataset: data/robot_arm/dataset.yaml
  training: data/robot_arm/train.yaml
```
"""

from pathlib import Path
from typing import Annotated

import dagster as dg
from pydantic import Field

from pipeline.orchestration.assets import build_assets
from pipeline.orchestration.checks import build_checks
from pipeline.orchestration.room import Room
from pipeline.orchestration.scaffold import TrialDatasetScaffolder
from pipeline.orchestration.triggers import build_triggers


@dg.scaffold_with(TrialDatasetScaffolder)
class TrialDataset(dg.Component, dg.Model, dg.Resolvable):
    """A data set of trial files: catalog, shards by bucket, a checked version, an LSTM, its errors.

    Paths are below the project root. Loading reads the two files and never lists raw ones.
    """

    dataset: Annotated[str, Field(description="The dataset.yaml.")]
    training: Annotated[
        str, Field(description="The training configuration; its `store` is where the data go.")
    ]
    owner: Annotated[str, Field(description="Who is asked: team:name or an e-mail address.")] = (
        "team:data"
    )
    schedule: Annotated[
        str, Field(description="Cron of the rebuild and evaluation; empty for none.")
    ] = "0 2 * * *"
    timezone: Annotated[str, Field(description="Of the schedule.")] = "UTC"
    watch_every_seconds: Annotated[
        int, Field(ge=1, description="How often the sensor looks at the raw files.")
    ] = 30
    quiet_seconds: Annotated[
        int, Field(ge=1, description="How long nothing may move before a run starts.")
    ] = 60

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of the data set.

        Raises:
            InvalidSpecError: If a file is wrong; the message names file and line.
        """
        root = Path(context.project_root)
        room = Room.open(root / self.dataset, root / self.training, owner=self.owner)
        job, schedules, sensor = build_triggers(
            room,
            cron=self.schedule,
            timezone=self.timezone,
            every_seconds=self.watch_every_seconds,
            quiet_seconds=self.quiet_seconds,
        )
        return dg.Definitions(
            assets=build_assets(room),
            asset_checks=build_checks(room),
            jobs=[job],
            schedules=schedules,
            sensors=[sensor],
        )
