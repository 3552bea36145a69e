"""Hooks: a user's Python function, which can do no harm to other trials or to the build."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter

from pipeline.derive import Derivations, check_causal, derive_columns, reach_of
from pipeline.files import RefusedError
from pipeline.sections import Derivation
from shards.errors import InvalidSpecError

FRAME = pl.DataFrame({"t": [0.0, 1.0, 3.0], "x": [3.0, None, 0.5], "w": ["a", "b", None]})
HEAD = "import polars as pl\nimport numpy as np\ndef f(trial, attributes):\n"


def hook(folder: Path, body: str, **fields: object) -> Derivations:
    """Return the derivations of one column `new`, whose hook has this body."""
    (folder / "hooks.py").write_text(HEAD + "".join(f"    {line}\n" for line in body.split("\n")))
    given = {"hook": "hooks.py:f", "columns": ["x"], **fields}
    return Derivations.of({"new": TypeAdapter(Derivation).validate_python(given)}, folder)


def run(folder: Path, body: str, attributes: dict[str, str] | None = None, **fields: object):
    return derive_columns(FRAME, hook(folder, body, **fields), attributes or {})["new"]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("return trial['x'] * 2", [6, None, 1]),
        ("return trial['x'].to_numpy() + 1", [4, None, 1.5]),
        ("return [1, None, float('nan')]", [1, None, None]),
        ("return (True, 2, np.float32(0.5))", [1, 2, 0.5]),
        ("return np.arange(3)", [0, 1, 2]),
        ("return trial['x'] > 1", [1, None, 0]),
        ("return np.array([1, 0, 1], bool)", [1, 0, 1]),
        ("return pl.Series([None] * 3)", [None] * 3),
        ("return np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0])", [1, None, 3]),
        ("return np.ma.masked_array([1, 2, 3], [0, 1, 0])", [1, None, 3]),
        ("return trial['x'].cast(pl.Int32)", [3, None, 0]),
    ],
)
def test_what_a_hook_returns_is_one_number_per_row(body: str, wanted: list, tmp_path: Path):
    new = run(tmp_path, body)
    assert new.dtype == pl.Float64
    assert new.to_list() == wanted


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1, 2]", r"f\(\) returned 2 values; wanted 3, one per row"),
        ("return np.zeros((3, 1))", r"f\(\) returned shape \(3, 1\); wanted 3"),
        ("return np.array(1.0)", r"f\(\) returned shape \(\); wanted 3"),
        ("return 1.0", r"f\(\) returned float; wanted numbers"),
        ("return None", "returned NoneType; wanted numbers"),
        ("return ['1', '2', '3']", "returned list with str; wanted numbers"),
        ("return trial", "returned DataFrame; wanted numbers"),
        ("return pl.col('x')", "returned Expr; wanted numbers"),
        ("return pl.Series(['a', 'b', 'c'])", "returned a Series of String"),
        ("return np.array(['a', 'b', 'c'])", "returned an array of <U1"),
        ("return np.array([1, 2, 3j])", "returned an array of complex128"),
        ("return [1, float('inf'), 2]", r"f\(\) returned an infinite value at row 2"),
        ("return [10 ** 400, 1, 2]", "OverflowError"),
        ("1 / 0", r"hooks\.py:4: ZeroDivisionError: 'division by zero'"),
        ("def g():\n    raise KeyError('x')\ng()", r"hooks\.py:5: KeyError"),
        ("return trial['t']", r"hooks\.py:4: ColumnNotFoundError"),
        ("return f(trial, attributes)", "RecursionError"),
        ("raise SystemExit(3)", "SystemExit: '3'"),
        ("raise ValueError('v' * 500)", "'" + "v" * 37 + r"\.\.\.'"),
        ("raise ValueError('a\\nb')", r"'a\\nb'"),
        ("raise pl.exceptions.PanicException('gone')", "PanicException: 'gone'"),
    ],
)
def test_a_hook_that_fails_refuses_its_trial(body: str, message: str, tmp_path: Path):
    with pytest.raises(RefusedError, match=message) as caught:
        run(tmp_path, body)
    assert (caught.value.code, caught.value.column) == ("hook_failed", "new")
    assert str(caught.value).startswith("derive.new: hooks.py")
    assert len(str(caught.value)) < 150


def test_a_hook_sees_what_it_names_and_nothing_else(tmp_path: Path):
    body = "assert trial.columns == ['w', 'kg'], trial.columns\nassert attributes == {'kg': '2.5'}"
    body += "\nassert trial['kg'].to_list() == [2.5] * 3\nreturn [0] * trial.height"
    attributes = {"kg": "2.5", "label": "secret"}
    assert run(tmp_path, body, attributes, columns=["w", "kg"]).to_list() == [0] * 3


def test_a_hook_sees_earlier_derived_columns_and_is_seen_by_later_ones(tmp_path: Path):
    (tmp_path / "h.py").write_text("def f(trial, attributes):\n    return trial['a'] + 1\n")
    given = {
        "a": "x * 2",
        "b": {"hook": "h.py:f", "columns": ["a"]},
        "c": "b * 10",
        "d": {"lag": "b"},
    }
    derivations = Derivations.of(
        TypeAdapter(dict[str, Derivation]).validate_python(given), tmp_path
    )
    frame = derive_columns(FRAME, derivations, {})
    assert frame["c"].to_list() == [70, None, 20]
    assert frame["d"].to_list() == [None, 7, None]
    assert derivations.source_columns() == {"x"}


def test_a_column_that_the_trial_lacks_is_named(tmp_path: Path):
    with pytest.raises(RefusedError, match=r"derive\.new reads 'kg', which this trial does not"):
        run(tmp_path, "return [0] * 3", columns=["kg"])


def test_what_a_hook_writes_into_its_inputs_changes_nothing_else(tmp_path: Path):
    body = """x = trial['x']
x[0] = 99.0
trial['x'][1] = 98.0
trial.replace_column(0, pl.Series('x', [7.0, 7.0, 7.0]))
trial.insert_column(0, pl.Series('more', [7.0, 7.0, 7.0]))
attributes['kg'] = 'changed'
try:
    trial['t'].to_numpy()[:] = 5.0
except Exception:
    pass
return [1, 2, 3]"""
    attributes = {"kg": "2"}
    before = FRAME.clone()
    derivations = hook(tmp_path, body, columns=["x", "t", "kg"])
    after = derive_columns(FRAME, derivations, attributes)
    assert after.select(FRAME.columns).equals(before)
    assert FRAME.equals(before)
    assert attributes == {"kg": "2"}


def test_a_file_is_executed_once_and_leaves_no_trace(tmp_path: Path):
    path = list(sys.path)
    (tmp_path / "once.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nn = 0\n"
        "@dataclass\nclass Box:\n    value: int\n"
        "def f(trial, attributes):\n"
        "    global n\n    n += 1\n    return [Box(n).value] * trial.height\n"
    )
    given = TypeAdapter(Derivation).validate_python({"hook": "once.py:f", "columns": ["x"]})
    derivations = Derivations.of({"a": given}, tmp_path)
    again = Derivations.of({"a": given}, tmp_path)
    assert derive_columns(FRAME, derivations, {})["a"].to_list() == [1] * 3
    assert derive_columns(FRAME, again, {})["a"].to_list() == [2] * 3
    assert sys.path == path
    assert "once" not in sys.modules
    assert [path.name for path in tmp_path.iterdir()] == ["once.py"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("none.py", None, r"derive\.new\.hook: cannot read .*none\.py: No such file"),
        ("bad.py", "x = 1\ndef f(:\n", r"derive\.new\.hook: bad\.py, line 2: not Python"),
        ("other.py", "def g(): pass\nimport os", r"other\.py defines no 'f'; it has: g, os"),
        ("empty.py", "", r"empty\.py defines no 'f'; it has: nothing"),
        ("nul.py", "def f(): pass\0", r"derive\.new\.hook: nul\.py"),
        ("latin.py", b"def f(): '\xe4'", r"latin\.py is not Python in UTF-8"),
    ],
)
def test_a_hook_that_is_not_there_is_a_mistake_of_the_specification(
    file: str, text: str | bytes | None, message: str, tmp_path: Path
):
    if text is not None:
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    given = TypeAdapter(Derivation).validate_python({"hook": f"{file}:f", "columns": ["x"]})
    with pytest.raises(InvalidSpecError, match=message):
        Derivations.of({"new": given}, tmp_path)
    Derivations.of({"new": given})  # without the folder nothing is looked for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nosuchmodule\ndef f(): pass",
            r"hooks\.py:1 cannot be loaded: ModuleNotFoundError",
        ),
        ("def f(): pass\nraise SystemExit(1)", r"hooks\.py:2 cannot be loaded: SystemExit"),
        ("f = 3", "'f' is no function"),
    ],
)
def test_a_file_that_does_not_load_stops_the_build(text: str, message: str, tmp_path: Path):
    (tmp_path / "hooks.py").write_text(text)
    given = TypeAdapter(Derivation).validate_python({"hook": "hooks.py:f", "columns": ["x"]})
    derivations = Derivations.of({"new": given}, tmp_path)
    for _ in range(2):
        with pytest.raises(InvalidSpecError, match=rf"derive\.new\.hook: .*{message}"):
            derive_columns(FRAME, derivations, {})


def test_finding_a_hook_executes_nothing(tmp_path: Path):
    (tmp_path / "hooks.py").write_text("raise SystemExit\ndef f(): pass")
    given = TypeAdapter(Derivation).validate_python({"hook": "hooks.py:f", "columns": ["x"]})
    assert Derivations.of({"new": given}, tmp_path).hook_digest


@pytest.mark.parametrize("path", ["/abs/hooks.py:f", "../hooks.py:f", "a/../../hooks.py:f"])
def test_a_hook_lies_below_the_data_sets_folder(path: str):
    with pytest.raises(ValueError, match="below the folder"):
        TypeAdapter(Derivation).validate_python({"hook": path, "columns": ["x"]})


def test_a_hook_may_lie_in_a_folder(tmp_path: Path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my hooks.py").write_text("def f(trial, attributes): return trial['x']")
    given = {"hook": "code/my hooks.py:f", "columns": ["x"]}
    derivations = Derivations.of({"a": TypeAdapter(Derivation).validate_python(given)}, tmp_path)
    assert derive_columns(FRAME, derivations, {})["a"].to_list() == FRAME["x"].to_list()


def test_the_digest_follows_the_content_and_a_change_is_noticed(tmp_path: Path):
    first = hook(tmp_path, "return [1] * 3")
    assert first.hook_digest == hook(tmp_path, "return [1] * 3").hook_digest
    second = hook(tmp_path, "return [2] * 3")
    assert first.hook_digest != second.hook_digest
    assert derive_columns(FRAME, second, {})["new"].to_list() == [2] * 3
    with pytest.raises(InvalidSpecError, match=r"hooks\.py changed during the build"):
        derive_columns(FRAME, first, {})
    assert Derivations.of({}).hook_digest == ""


def test_a_hook_reaches_as_far_as_it_says(tmp_path: Path):
    for reach in ("row", "past", "trial"):
        derivations = hook(tmp_path, "return [1] * 3", reach=reach)
        assert reach_of(derivations) == {"new": reach}
    with pytest.raises(InvalidSpecError, match=r"derive\.new sees the whole trial"):
        check_causal(derivations, ["new"])
    assert reach_of(hook(tmp_path, "return [1] * 3")) == {"new": "trial"}


def test_a_frame_without_missing_values_is_safe_too(tmp_path: Path):
    """Without nulls polars hands out its own memory, which must not be writable."""
    frame = pl.DataFrame({"x": np.arange(3.0)})
    body = "a = trial['x'].to_numpy()\ntry:\n    a[0] = 9\nexcept ValueError:\n    pass\nreturn a"
    new = derive_columns(frame, hook(tmp_path, body), {})
    assert new["x"].to_list() == [0, 1, 2]
