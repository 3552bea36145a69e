"""`dg scaffold defs pipeline.component.TrialDataset NAME`: files to start a data set from."""

import re
from pathlib import Path

import click
from dagster.components import Scaffolder, ScaffoldRequest, scaffold_component
from dagster.components.scaffold.scaffold import NoParams

from pipeline.spec import NAME

DATASET = """\
# One data set: what is found, how it is cleaned, split and cut into windows.
name: {name}
source:
  files: raw/**/*.csv          # below this folder
  obtain: Put one CSV file per trial below {folder}/raw.
  # trial_id: (?P<subject>s\\d+)/trial_\\d+    # named groups become attributes of the trial
  # time: t                    # a column that must increase

channels: [x, y]               # columns of the files; write {{name: x, unit: N m}} to give a unit

clean: {{missing: interpolate, limit: 5, then: mask}}
normalize: {{method: zscore, scope: train}}    # zscore minmax robust none; by trial or by train
split: {{by: trial, method: hash, fractions: {{train: 0.8, val: 0.1, test: 0.1}}, seed: 0}}
windows:
  length: 64
  stride: 16
  target: {{kind: forecast, channels: [x], horizon: 1}}
shards: {{buckets: 8}}           # parts that are built, and built again, apart
"""
TRAIN = """\
# An LSTM on the data set beside this file; every field and its default: training/config.py
store: store
out: ../../runs/{name}
model: {{hidden: 64, layers: 1}}
epochs: 20
"""
TEMPLATES = {"dataset.yaml": DATASET, "train.yaml": TRAIN}


class TrialDatasetScaffolder(Scaffolder[NoParams]):
    """Writes `defs.yaml`, and `data/NAME/{dataset,train}.yaml` where there are none."""

    def scaffold(self, request: ScaffoldRequest[NoParams]) -> None:
        """Write the files.

        Raises:
            click.UsageError: If the folder's name cannot be the name of a data set.
        """
        name, root = request.target_path.name, request.project_root
        if not re.fullmatch(NAME, name) or root is None:
            request.target_path.rmdir()
            raise click.UsageError(
                f"{name!r} cannot name a data set; wanted lower-case letters, digits and _, "
                "such as my_trials, inside a dg project."
            )
        folder = Path("data") / name
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file, text in TEMPLATES.items():
            path = root / folder / file
            if not path.exists():
                path.write_text(text.format(name=name, folder=folder.as_posix()))
        paths = {"dataset": "dataset.yaml", "training": "train.yaml"}
        scaffold_component(
            request, {field: (folder / file).as_posix() for field, file in paths.items()}
        )
