"""User files: every mistake is told with its line, what was found and what is wanted."""

import textwrap
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from shards import InvalidSpecError
from shards.userfile import read_yaml


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Fill(Model):
    kind: Literal["fill"]
    value: float = 0.0


class Cut(Model):
    kind: Literal["cut"]
    limit: int = Field(ge=1)


class Channel(Model):
    name: str
    unit: str = ""


class Source(Model):
    files: str
    delimiter: str = ","

    @field_validator("delimiter")
    @classmethod
    def _one(cls, value):
        if len(value) != 1:
            raise ValueError(f"got {value!r}; wanted one character.")
        return value


class Spec(Model):
    name: str
    source: Source
    channels: list[Channel] = []
    steps: list[Annotated[Fill | Cut, Field(discriminator="kind")]] = []
    clean: Annotated[Fill | Cut, Field(discriminator="kind")] | None = None
    tables: dict[str, Channel] = {}
    grid: list[list[int]] = []


def read(tmp_path, text):
    path = tmp_path / "dataset.yaml"
    if text.startswith("\n "):
        text = textwrap.dedent(text)[1:]
    path.write_text(text.removeprefix("\n"), encoding="utf-8")
    return read_yaml(path, Spec)


def refusal(tmp_path, text):
    with pytest.raises(InvalidSpecError) as caught:
        read(tmp_path, text)
    return str(caught.value).replace(str(tmp_path / "dataset.yaml"), "FILE")


GOOD = """
name: arm
source: {files: "*.csv"}
"""


def test_a_good_file_becomes_its_model(tmp_path):
    spec = read(
        tmp_path,
        """
        # a comment
        name: bras articulé
        source:
          files: "raw/**/*.csv"
        channels: [{name: q1, unit: rad}, {name: q2}]
        steps:
          - kind: fill
            value: 1.5
          - {kind: cut, limit: 3}
        clean: {kind: cut, limit: 2}
        grid: [[1, 2], [3]]
        """,
    )
    assert spec.name == "bras articulé"
    assert spec.source.files == "raw/**/*.csv"
    assert [c.unit for c in spec.channels] == ["rad", ""]
    assert [type(step) for step in spec.steps] == [Fill, Cut]
    assert spec.clean.limit == 2
    assert spec.grid == [[1, 2], [3]]


def test_an_unknown_field_names_its_line_the_close_one_and_the_known_ones(tmp_path):
    assert refusal(tmp_path, GOOD + "chanels: []\n") == (
        "FILE:3: chanels: no such field. Did you mean 'channels'? "
        "Known here: channels, clean, grid, name, source, steps, tables."
    )


def test_an_unknown_field_like_no_other_has_no_guess(tmp_path):
    message = refusal(tmp_path, GOOD + "zzz: 1\n")
    assert message.startswith("FILE:3: zzz: no such field. Known here: channels")


def test_an_unknown_field_inside_a_field_knows_its_neighbours(tmp_path):
    text = """
    name: arm
    source:
      files: x
      delimeter: ";"
    """
    assert refusal(tmp_path, text) == (
        "FILE:4: source.delimeter: no such field. Did you mean 'delimiter'? "
        "Known here: delimiter, files."
    )


def test_an_unknown_field_in_a_list_item_is_found_by_its_line(tmp_path):
    text = """
    name: arm
    source: {files: x}
    channels:
      - name: q1
      - name: q2

        unitt: rad
    """
    assert refusal(tmp_path, text) == (
        "FILE:7: channels.1.unitt: no such field. Did you mean 'unit'? Known here: name, unit."
    )


def test_an_unknown_field_in_a_table_of_models_knows_its_neighbours(tmp_path):
    text = GOOD + "tables:\n  arm:\n    name: x\n    unitt: rad\n"
    assert refusal(tmp_path, text) == (
        "FILE:6: tables.arm.unitt: no such field. Did you mean 'unit'? Known here: name, unit."
    )


@pytest.mark.parametrize(("kind", "field", "known"), [
    ("fill", "valeu", "kind, value"), ("cut", "limt", "kind, limit"),
])  # fmt: skip
def test_an_unknown_field_of_a_tagged_union_knows_only_the_chosen_model(
    tmp_path, kind, field, known
):
    text = GOOD + f"steps:\n  - kind: {kind}\n    limit: 3\n    {field}: 1\n"
    lines = refusal(tmp_path, text).splitlines()
    (line,) = (line for line in lines if field in line)
    assert line.startswith(f"FILE:6: steps.0.{kind}.{field}: no such field. Did you mean")
    assert line.endswith(f"Known here: {known}.")


def test_the_branch_of_an_optional_union_is_known_too(tmp_path):
    message = refusal(tmp_path, GOOD + "clean:\n  kind: cut\n  limit: 1\n  valu: 2\n")
    assert message.startswith("FILE:6: clean.cut.valu: no such field.")
    assert message.endswith("Known here: kind, limit.")


def test_an_unknown_tag_says_which_there_are(tmp_path):
    message = refusal(tmp_path, GOOD + "steps:\n  - kind: fil\n")
    assert message.startswith("FILE:4: steps.0: got {'kind': 'fil'}; wanted: ")
    assert "'fill', 'cut'" in message


def test_a_missing_tag_is_told_at_its_item(tmp_path):
    message = refusal(tmp_path, GOOD + "steps:\n  - {kind: fill}\n  - {value: 1}\n")
    assert message.startswith("FILE:5: steps.1: got {'value': 1}; wanted: ")
    assert "kind" in message


def test_a_missing_field_is_told_at_its_parent(tmp_path):
    text = """
    source:
      delimiter: ","
    channels:
      - unit: rad
    """
    assert refusal(tmp_path, text).splitlines() == [
        "FILE:1: name: missing. Add it.",
        "FILE:1: source.files: missing. Add it.",
        "FILE:4: channels.0.name: missing. Add it.",
    ]


def test_a_wrong_type_shows_what_was_found_and_what_is_wanted(tmp_path):
    text = GOOD + "steps:\n- kind: cut\n  limit: many\n"
    assert refusal(tmp_path, text) == (
        "FILE:5: steps.0.cut.limit: got 'many'; wanted: Input should be a valid integer, unable to "
        "parse string as an integer."
    )


def test_a_value_out_of_range_shows_the_range(tmp_path):
    message = refusal(tmp_path, GOOD + "steps: [{kind: cut, limit: 0}]\n")
    assert message == (
        "FILE:3: steps.0.cut.limit: got 0; wanted: Input should be greater than or equal to 1."
    )


def test_a_mistake_deep_in_nested_lists_has_the_line_of_its_item(tmp_path):
    message = refusal(tmp_path, GOOD + "grid:\n- [1, 2]\n-\n  - 3\n  - x\n")
    assert message.startswith("FILE:7: grid.1.1: got 'x'; wanted: Input should be a valid integer")


def test_a_validators_own_words_are_kept_as_they_are(tmp_path):
    text = "name: arm\nsource:\n  files: x\n  delimiter: ab\n"
    assert refusal(tmp_path, text) == "FILE:4: source.delimiter: got 'ab'; wanted one character."


def test_all_mistakes_are_told_at_once_in_file_order_of_the_model(tmp_path):
    text = "nme: arm\nsource: 5\nchannels: [1, {name: [x]}]\n"
    lines = refusal(tmp_path, text).splitlines()
    assert [line.split(": ")[0:2] for line in lines] == [
        ["FILE:1", "name"], ["FILE:2", "source"], ["FILE:3", "channels.0"],
        ["FILE:3", "channels.1.name"], ["FILE:1", "nme"],
    ]  # fmt: skip


def test_a_long_value_is_quoted_short(tmp_path):
    message = refusal(tmp_path, GOOD + f"grid: {'x' * 5000}\n")
    assert len(message) < 250
    assert "xxx..." in message


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\nsource: {files: x}\nname: b\n", 3, "name"),
        ("name: a\nsource:\n  files: x\n  delimiter: ';'\n  files: y\n", 5, "files"),
        ("name: a\nsource: {files: x}\nchannels:\n- name: p\n  unit: m\n  name: q\n", 6, "name"),
        ("name: a\nsource: {files: x, files: y}\n", 2, "files"),
        ("name: a\nsource: {files: x}\n'name': b\n", 3, "name"),
    ],
)
def test_a_key_given_twice_is_refused_at_its_second_line(tmp_path, text, line, key):
    assert refusal(tmp_path, text) == f"FILE:{line}: key '{key}' is given twice. Keep one of them."


def test_the_same_key_in_two_mappings_is_no_repetition(tmp_path):
    assert len(read(tmp_path, GOOD + "channels: [{name: a}, {name: b}]\n").channels) == 2


def test_anchors_may_be_used_again(tmp_path):
    spec = read(tmp_path, GOOD + "channels: [&q {name: a}, *q, *q]\n")
    assert [c.name for c in spec.channels] == ["a", "a", "a"]


@pytest.mark.parametrize(
    "text",
    [
        "name: [1\n",
        "name: 'open\n",
        "name: a\n  source: b\n",
        "\tname: a\n",
        "name: @a\n",
        "a: 1\n---\nb: 2\n",
        "name: !!python/object/apply:os.system ['true']\n",
        "name: *nobody\n",
        "? [a]\n: 1\n",
        "name: a\0b\n",
    ],
)
def test_what_is_not_yaml_is_refused_with_a_place(tmp_path, text):
    message = refusal(tmp_path, text)
    assert message.startswith("FILE is not YAML: ")
    assert "line" in message or "position" in message


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", "None"), ("# only a comment\n", "None"), ("- a\n- b\n", "['a', 'b']"), ("5\n", "5"),
     ("just text\n", "'just text'")],
)  # fmt: skip
def test_a_document_without_fields_is_refused(tmp_path, text, shown):
    assert refusal(tmp_path, text) == f"FILE holds {shown}; wanted fields like 'name: ...'."


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(
        InvalidSpecError, match=f"cannot read {tmp_path}/none.yaml: .*Check the path"
    ):
        read_yaml(tmp_path / "none.yaml", Spec)
    with pytest.raises(InvalidSpecError, match=f"cannot read {tmp_path}: "):
        read_yaml(tmp_path, Spec)
    (tmp_path / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(InvalidSpecError, match=r"cannot read .*latin.yaml: .*utf-8"):
        read_yaml(tmp_path / "latin.yaml", Spec)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "dataset.yaml"
    path.write_bytes("\ufeffname: arm\r\nsource:\r\n  files: x\r\n  filez: y\r\n".encode())
    with pytest.raises(InvalidSpecError, match=r":4: source.filez: no such field. .*'files'"):
        read_yaml(path, Spec)


@pytest.mark.parametrize("value", ["2024-02-30", "0x_", "!!int many", "!!float x"])
def test_a_scalar_yaml_itself_cannot_convert_is_refused_by_path(tmp_path, value):
    assert refusal(tmp_path, GOOD + f"tables: {value}\n").startswith("FILE")


def test_an_anchor_inside_itself_is_refused(tmp_path):
    assert refusal(tmp_path, GOOD + "grid: &g [*g]\n").startswith("FILE")


def test_a_number_and_the_same_digits_as_text_are_two_keys(tmp_path):
    assert "twice" not in refusal(tmp_path, GOOD + "tables: {1: {name: a}, '1': {name: b}}\n")


@pytest.mark.xfail(
    strict=True,
    reason="userfile.py:86: the tag of a union is looked up as a key, so a tag that is also a "
    "field leads to that field's line",
)
def test_a_tag_that_is_also_a_field_does_not_mislead_the_line(tmp_path):
    class Window(Model):
        kind: Literal["window"]
        window: Channel
        size: int

    class Point(Model):
        kind: Literal["point"]

    class Job(Model):
        part: Annotated[Window | Point, Field(discriminator="kind")]

    path = tmp_path / "job.yaml"
    path.write_text("part:\n  kind: window\n  window:\n    name: w\n    unit: s\n  size: big\n")
    with pytest.raises(InvalidSpecError, match=r"job.yaml:6: part.window.size: got 'big'"):
        read_yaml(path, Job)


@pytest.mark.xfail(
    strict=True,
    reason="userfile.py:125: locations hold aliases, model_fields holds names, so a field behind "
    "an alias knows its parent's fields (no model of this project uses aliases yet)",
)
def test_fields_behind_an_alias_are_known(tmp_path):
    class Outer(Model):
        klass: Channel = Field(alias="class")

    path = tmp_path / "job.yaml"
    path.write_text("class:\n  name: w\n  unitt: s\n")
    with pytest.raises(InvalidSpecError, match="Did you mean 'unit'"):
        read_yaml(path, Outer)
