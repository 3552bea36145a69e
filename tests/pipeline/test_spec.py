"""`dataset.yaml`: what is wrong is refused with its line, what was found, what is wanted."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from trialfolders import MINIMAL, make_spec, merged

from pipeline.recipe import Recipe
from pipeline.sections import ForecastTarget, PerStepTarget, parse_size
from pipeline.spec import DatasetSpec, load_spec
from pipeline.splits import assign_splits
from shards.errors import InvalidSpecError

ROOT = Path(__file__).parents[2]
GOOD = """\
name: demo
source:
  files: raw/*.csv
  trial_id: (?P<subject>s\\d)/(?P<id>\\w+)
  time: t
channels:
  - x
  - {name: y, unit: N m}
derive:
  z: x + y
attributes:
  kg: {column: mass}
clean:
  missing: interpolate
  limit: 5
  then: mask
normalize: {method: zscore, scope: train}
split:
  method: hash
  fractions: {train: 0.8, test: 0.2}
windows:
  length: 8
  stride: 2
  target:
    kind: forecast
    channels: [x]
shards:
  target_bytes: 1MiB
max_quarantined: 0.1
"""


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSpecError) as caught:
        load_spec(path)
    return str(caught.value).replace(str(path), "dataset.yaml")


def line_of(text: str, marker: str) -> int:
    return 1 + next(i for i, line in enumerate(text.splitlines()) if marker in line)


def test_the_text_that_the_refusals_are_cut_from_is_good(tmp_path: Path):
    path = tmp_path / "dataset.yaml"
    path.write_text(GOOD)
    spec = load_spec(path)
    assert [channel.name for channel in spec.channels] == ["x", "y"]
    assert spec.channels[1].unit == "N m"
    assert spec.shards.target_bytes == 2**20
    assert isinstance(spec.windows.target, ForecastTarget)


# name -> (text to replace, what to put there, marker of the line to name, parts of the message)
REFUSALS = {
    "typo in a section": (
        "normalize:", "normalise:", "normalise:",
        ["normalise: no such field", "Did you mean 'normalize'?", "Known here:", "windows"],
    ),
    "typo in a field": (
        "  limit: 5", "  limt: 5", "limt:",
        ["clean.limt: no such field", "Did you mean 'limit'?", "drop_trial_if_missing"],
    ),
    "typo in a nested field": (
        "length: 8", "lenght: 8", "lenght:", ["windows.lenght", "Did you mean 'length'?"],
    ),
    "typo in a target's field": (
        "    channels: [x]", "    channels: [x]\n    horizn: 2", "horizn",
        ["horizn: no such field", "Did you mean 'horizon'?", "steps"],
    ),
    "typo in a channel's field": (
        "unit: N m}", "units: N m}", "units:", ["Did you mean 'unit'?", "name"],
    ),
    "a field of another target": (
        "    channels: [x]", "    channels: [x]\n    columns: [z]", "columns:",
        ["columns: no such field", "channels, horizon, kind, steps"],
    ),
    "unlike anything": ("stride: 2", "qqqqq: 2", "qqqqq", ["qqqqq", "Known here: length"]),
    "word for a number": ("length: 8", "length: long", "long", ["windows.length", "'long'", "int"]),
    "list for a number": ("length: 8", "length: [8]", "length", ["windows.length", "[8]", "int"]),
    "zero length": ("length: 8", "length: 0", "length", ["windows.length", "got 0", "equal to 1"]),
    "negative stride": ("stride: 2", "stride: -1", "stride", ["got -1", "equal to 1"]),
    "fraction of a row": ("limit: 5", "limit: 2.5", "limit", ["clean.limit", "2.5", "int"]),
    "zero limit": ("limit: 5", "limit: 0", "limit", ["clean.limit", "got 0"]),
    "unknown word": (
        "then: mask", "then: hide", "then:",
        ["clean.then", "'hide'", "'mask', 'constant', 'drop' or 'refuse'"],
    ),
    "unknown method": (
        "zscore", "znorm", "normalize:", ["normalize.method", "'znorm'", "'robust'"],
    ),
    "unknown scope": ("scope: train", "scope: all", "normalize:", ["normalize.scope", "'all'"]),
    "unknown target kind": (
        "kind: forecast", "kind: forcast", "target:",
        ["windows.target", "forcast", "'forecast', 'per_step', 'per_trial'"],
    ),
    "no target kind": ("    kind: forecast\n", "", "target:", ["windows.target", "kind"]),
    "missing section": (
        GOOD[GOOD.index("windows:") : GOOD.index("shards:")], "", "name:", ["windows: missing"],
    ),
    "missing field": ("  length: 8\n", "", "windows:", ["windows.length: missing", "Add it"]),
    "name with blanks": ("name: demo", "name: My Data", "name:", ["name", "'My Data'", "pattern"]),
    "no channel": ("  - x\n  - {name: y, unit: N m}", "  []", "channels:", ["channels", "1 item"]),
    "channel that is a number": ("  - x\n", "  - 7\n", "- 7", ["channels.0", "got 7"]),
    "no target channel": ("channels: [x]", "channels: []", "channels: []", ["1 item"]),
    "quarantine above one": (
        "max_quarantined: 0.1", "max_quarantined: 5", "max_quarantined:", ["got 5", "equal to 1"],
    ),
    "negative fraction": (
        "train: 0.8, test: 0.2", "train: 1.2, test: -0.2", "fractions:",
        ["split.fractions.train", "1.2", "split.fractions.test", "-0.2"],
    ),
    "fraction that is no number": (
        "train: 0.8", "train: .nan", "fractions:", ["split.fractions.train", "nan"],
    ),
    "bad size": (
        "1MiB", "1 parsec", "target_bytes", ["shards.target_bytes", "'1 parsec'", "integer"],
    ),
    "no buckets": (
        "target_bytes: 1MiB", "buckets: 0", "buckets", ["shards.buckets", "got 0", "equal to 1"],
    ),
    "bad regex": (
        "(?P<id>\\w+)", "(?P<id>\\w+", "trial_id:",
        ["source.trial_id", "no regular expression", "unterminated"],
    ),
    "long delimiter": (
        "  time: t", "  time: t\n  delimiter: ', '", "delimiter", ["source.delimiter", "', '"],
    ),
}  # fmt: skip

# The same, where the mistake is between fields.
RELATIONS = {
    "target channel unknown": (
        "channels: [x]", "channels: [x, q9]", "channels: [x, q9]",
        ["windows.target.channels", "'q9' is no channel", "wanted some of: x, y"],
    ),
    "target column that is a channel": (
        "    kind: forecast\n    channels: [x]", "    kind: per_step\n    columns: [z, y]",
        "columns:", ["'y' is also a channel", "see its own target", "Remove it"],
    ),
    "channel twice": (
        "  - x\n", "  - x\n  - {name: x}\n", "{name: x}", ["'x' is listed twice", "keep one"],
    ),
    "fractions": (
        "train: 0.8, test: 0.2", "train: 0.8, test: 0.1", "fractions:",
        ["fractions: got a sum of 0.9; wanted 1"],
    ),
    "absolute glob": (
        "files: raw/*.csv", "files: /data/*.csv", "files:",
        ["files: got '/data/*.csv'", "wanted a glob below"],
    ),
    "glob that climbs": (
        "files: raw/*.csv", "files: raw/../../*.csv", "files:", ["'raw/../../*.csv'", "below"],
    ),
    "method attribute without one": (
        "method: hash", "method: attribute", "split:",  # the section of what is not there
        ["split.attribute: goes with 'method: attribute'"],
    ),
    "attribute without its method": (
        "method: hash", "attribute: subject", "attribute: subject",
        ["split.attribute: goes with 'method: attribute'"],
    ),
    "columns and a header": (
        "  time: t", "  time: t\n  columns: [t, x, y]", "columns:", ["header", "not both"],
    ),
    "neither columns nor a header": (
        "  time: t", "  time: t\n  header: false", "header:", ["'columns'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*REFUSALS, *RELATIONS])
def test_a_refusal_says_what_was_found_and_what_is_wanted(case: str, tmp_path: Path):
    old, new, _, parts = (REFUSALS | RELATIONS)[case]
    assert GOOD.count(old) == 1 or old == "x"
    message = refusal(tmp_path, GOOD.replace(old, new))
    for part in parts:
        assert part in message, message
    assert "Traceback" not in message


@pytest.mark.parametrize("case", [*REFUSALS, *RELATIONS])
def test_a_refusal_names_the_line(case: str, tmp_path: Path):
    old, new, marker, parts = (REFUSALS | RELATIONS)[case]
    text = GOOD.replace(old, new)
    lines = refusal(tmp_path, text).splitlines()
    assert all(re.match(r"dataset\.yaml:\d+: \S", line) for line in lines)
    blamed = [line for line in lines if parts[0] in line]
    assert {line.split(":")[1] for line in blamed} == {str(line_of(text, marker))}, lines


def test_every_mistake_is_listed_at_once(tmp_path: Path):
    text = GOOD.replace("length: 8", "length: 0").replace("limit: 5", "limt: 5")
    lines = refusal(tmp_path, text).splitlines()
    assert [int(line.split(":")[1]) for line in lines] == [line_of(text, "limt"), 22]
    assert "windows.length" in lines[1]


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (GOOD + "name: other\n", 30, "name"),
        (GOOD.replace("  limit: 5", "  limit: 5\n  missing: drop"), 16, "missing"),
        (GOOD.replace("{name: y, unit: N m}", "{name: y, unit: N m, name: w}"), 8, "name"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(text: str, line: int, key: str, tmp_path: Path):
    message = refusal(tmp_path, text)
    assert message.startswith(f"dataset.yaml:{line}: key {key!r} is given twice.")
    assert "Keep one" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_without_fields_is_refused(text: str, tmp_path: Path):
    assert "wanted fields like" in refusal(tmp_path, text)


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path):
    message = refusal(tmp_path, "name: demo\nchannels: [x, y\nsource: 3\n")
    assert "is not YAML" in message
    assert "line 3" in message


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(InvalidSpecError, match=r"cannot read .*absent\.yaml.*Check the path"):
        load_spec(tmp_path / "absent.yaml")
    (tmp_path / "b.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(InvalidSpecError, match=r"cannot read .*b\.yaml"):
        load_spec(tmp_path / "b.yaml")
    with pytest.raises(InvalidSpecError, match="cannot read"):
        load_spec(tmp_path)


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("128MiB", 2**27), ("1 GB", 10**9), (" 2KB ", 2000), ("3B", 3), ("0.5KiB", 512),
        ("1.5GiB", 3 * 2**29), (77, 77),
    ],
)  # fmt: skip
def test_sizes_have_units(text: object, size_bytes: int):
    assert parse_size(text) == size_bytes
    assert make_spec(shards={"target_bytes": text}).shards.target_bytes == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "12 mib", "-1MiB", "1e3B", "0.4B", "0", "1,5GB", "٣B"])
def test_other_sizes_are_refused(text: str):
    with pytest.raises(ValueError, match="target_bytes"):
        make_spec(shards={"target_bytes": text})


@pytest.mark.parametrize("text", ["5iB", "9" * 400 + "B"])
def test_sizes_that_nearly_fit_are_refused_in_sentences(text: str):
    with pytest.raises(ValueError, match="target_bytes"):
        make_spec(shards={"target_bytes": text})


@given(st.integers(1, 2**22), st.sampled_from(["KiB", "MiB", "GiB", "KB", "MB", "GB", "B"]))
def test_whole_sizes_are_exact(count: int, unit: str):
    base, power = (1024 if "i" in unit else 1000), "BKMG".index(unit[0])
    assert parse_size(f"{count}{unit}") == count * base**power


# --- splits by time ---------------------------------------------------------------------------

DATED: dict[str, object] = {"column": "t", "format": "iso"}
WRONG_TIMES = {
    "no times": (
        None, {"boundaries": {"test": 10}}, "split.method",
        "got 'time', which needs to know when a row was recorded. Add source.time, or choose",
    ),
    "a duration of plain numbers": (
        "t", {"boundaries": {"test": 10}, "purge": "5min"}, "split.purge",
        "got a duration; wanted a plain number, because times are numbers; or say their 'unit'.",
    ),
    "a number of seconds": (
        {"column": "t", "unit": "ms"}, {"boundaries": {"test": 10}, "purge": 5}, "split.purge",
        "got a plain number; wanted a duration such as 5min, because times are seconds.",
    ),
    "a number of dates": (
        DATED, {"boundaries": {"test": "2024-03-01"}, "purge": 5}, "split.purge", "a plain number",
    ),
    "a date among plain numbers": (
        "t", {"boundaries": {"val": 5, "test": dt.date(2024, 3, 1)}}, "split.boundaries",
        ("got '2024-03-01'; wanted numbers, because source.time holds no dates (format: number). "
        "Mend the format, or write numbers in its units."),
    ),
    "a date among times of day": (
        {"column": "t", "format": "clock"}, {"boundaries": {"test": "2024-03-01"}},
        "split.boundaries", "(format: clock). Mend the format, or write numbers in seconds.",
    ),
}  # fmt: skip


def write_timed(tmp_path: Path, time: object, **split: object) -> Path:
    sections = {"source": {"time": time}, "split": {"method": "time", **split}}
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump(merged(MINIMAL, sections)))
    return path


@pytest.mark.parametrize("case", WRONG_TIMES)
def test_a_split_by_time_has_to_fit_the_time_column(case: str, tmp_path: Path):
    time, split, where, message = WRONG_TIMES[case]
    path = write_timed(tmp_path, time, **split)
    key = "method:" if where == "split.method" else where.removeprefix("split.") + ":"
    line = line_of(path.read_text(), key)
    with pytest.raises(InvalidSpecError, match=rf":{line}: {re.escape(f'{where}: ')}") as caught:
        load_spec(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("time", "split"),
    [
        ("t", {"boundaries": {"val": 1, "test": 2.5}, "purge": 3}),
        ({"column": "t", "unit": "s"}, {"boundaries": {"test": 100}, "purge": "2min"}),
        (DATED, {"boundaries": {"test": "2024-03-01"}, "purge": "1h"}),
        (DATED, {"boundaries": {"test": 1.7e9}}),
    ],
)
def test_a_split_by_time_that_fits_is_taken(time: object, split: dict[str, object], tmp_path: Path):
    assert load_spec(write_timed(tmp_path, time, **split)).split.method == "time"


def test_dates_need_no_quotes(tmp_path: Path):
    """YAML itself turns some of them into dates."""
    written = {
        "a": "2024-03-01", "b": "2024-03-02 12:00:00", "c": "2024-03-03T12:00:00+02:00",
        "d": "2024-03-04T06:00", "e": "1.8e+9",
    }  # fmt: skip
    path = write_timed(tmp_path, DATED, boundaries={"a": 0})
    lines = "".join(f"\n    {name}: {date}" for name, date in written.items())
    path.write_text(path.read_text().replace("\n    a: 0", lines))
    spec = load_spec(path).split
    assert list(spec.boundaries.values()) == [
        "2024-03-01", "2024-03-02T12:00:00", "2024-03-03T12:00:00+02:00", "2024-03-04T06:00", 1.8e9,
    ]  # fmt: skip
    spans = np.array([[0.0, 1.0], [1_709_251_200.0, 1_709_251_300.0]])
    assert assign_splits(["x", "y"], {}, spec, spans=spans) == ["train", "a"]
    assert json.loads(spec.model_dump_json())["boundaries"] == spec.boundaries


# --- what only shows between the specification and the rest -----------------------------------

UNCHECKED = {
    "constant that is infinite": {"clean": {"missing": "constant", "value": float("inf")}},
    "constant that is NaN": {"clean": {"then": "constant", "value": float("nan")}},
    "delimiter that is a quote": {"source": {"delimiter": '"'}},
    "delimiter beyond ASCII": {"source": {"delimiter": "é"}},
    "target column twice": {
        "windows": {"target": {"kind": "per_step", "columns": ["a", "a"], "channels": None}}
    },
    "delimiter that is NUL": {"source": {"delimiter": "\0"}},
    "column of the file twice": {"source": {"header": False, "columns": ["x", "y", "x"]}},
    "channel that no column has": {"source": {"header": False, "columns": ["a", "b"]}},
    "nothing but derived constants": {
        "channels": ["c"],
        "derive": {"c": "1.5"},
        "windows": {"target": {"channels": ["c"]}},
    },
    "validation of no split": {"split": {"validation": {"of": "training"}}},
    "validation of no exact split": {
        "split": {"method": "exact", "validation": {"of": "training"}}
    },
    "channel without a name": {"channels": ["x", "y", ""]},
}


@pytest.mark.parametrize("case", UNCHECKED)
def test_a_specification_that_cannot_work_is_refused_before_any_file_is_read(
    case: str, tmp_path: Path
):
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump(merged(MINIMAL, UNCHECKED[case])))
    with pytest.raises(InvalidSpecError):
        Recipe(load_spec(path)).check()


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"split": {"by": "subject"}}, "split.by"),
        ({"split": {"method": "attribute", "attribute": "side"}}, "split.attribute"),
        (
            {"windows": {"target": {"kind": "per_trial", "attribute": "grade", "channels": None}}},
            "windows.target.attribute",
        ),
    ],
)
def test_an_attribute_that_nothing_provides_is_refused(sections: dict[str, object], where: str):
    spec = make_spec(source={"trial_id": r"(?P<part>\w+)"}, **sections)
    with pytest.raises(InvalidSpecError, match=rf"{re.escape(where)}: no attribute .*known: part"):
        Recipe(spec).check()


@pytest.mark.parametrize(
    ("source", "delimiter"),
    [
        ({}, ","),
        ({"files": "raw/*.TSV"}, "\t"),
        ({"files": "raw/*.psv"}, "|"),
        ({"files": "raw/*"}, ","),
        ({"files": "raw/*.txt", "format": "blank"}, None),
        ({"files": "raw/*.tsv", "format": "csv"}, ","),
        ({"files": "raw/*.tsv", "delimiter": ";"}, ";"),
    ],
)
def test_the_delimiter_follows_field_then_format_then_suffix(
    source: dict[str, str], delimiter: str | None
):
    assert make_spec(source=source).source.resolved_delimiter() == delimiter


# --- the specifications of this repository ----------------------------------------------------


def test_the_committed_specifications_load():
    arm = load_spec(ROOT / "data" / "robot_arm" / "dataset.yaml")
    assert len(arm.channels) == 9
    assert {channel.unit for channel in arm.channels} == {"rad", "rad/s", "N m"}
    assert isinstance(arm.windows.target, ForecastTarget)
    assert arm.windows.arithmetic().ahead == 10
    engines = load_spec(ROOT / "data" / "cmapss" / "fd001.yaml")
    assert isinstance(engines.windows.target, PerStepTarget)
    assert engines.max_quarantined == 0
    for spec in (arm, engines):
        Recipe(spec).check()
        again = DatasetSpec.model_validate(spec.model_dump(mode="json"))
        assert again == spec
