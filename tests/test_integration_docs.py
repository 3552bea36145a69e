"""The Python of docs/integrations.md runs as it stands; its programs are those of examples/."""

import re
import shlex
from itertools import islice
from pathlib import Path

import pytest
from stores import make_store

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "integrations.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What is known after all blocks have run."""
    folder = tmp_path_factory.mktemp("docs")
    make_store(folder / "store", [300, 200, 90], splits=["train", "train", "val"])
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        known = {}
        for block in blocks("python"):
            exec(block, known)
            found.append(dict(known))
        yield found


def test_the_state_of_the_loader_is_that_after_the_batch(names):
    known = names[0]
    assert (known["state"]["epoch"], known["state"]["step"]) == (0, 1)
    assert [batch.step for batch in known["loader"]] == list(range(1, len(known["loader"])))


def test_the_module_trains_and_validates_on_the_streams_of_the_page(names):
    data, val = names[1]["data"], names[1]["val"]
    loader = data.train_dataloader()
    steps = [(batch.epoch, batch.step) for batch in islice(loader, len(loader) + 1)]
    assert steps == [*((0, step) for step in range(len(loader))), (1, 0)]
    assert [batch.step for batch in data.val_dataloader()] == list(range(len(val)))


def test_the_loaders_of_the_page_deliver_an_epoch(names):
    for known in names[2:]:
        loader = known["loader"]
        assert [batch.step for batch in loader] == list(range(len(loader)))
    assert [type(known["loader"]).__name__ for known in names[2:]] == [
        "_SteppedLoader", "StreamStatefulDataLoader",
    ]  # fmt: skip


def test_the_commands_run_each_example():
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    programs = {word for line in lines for word in line if word.endswith(".py")}
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")}
    assert programs == found - {"examples/model.py"}
    for line in lines:  # tests/test_examples.py runs them; here, that the words are known to them
        (program,) = (word for word in line if word.endswith(".py"))
        options = {word for word in line[line.index(program) :] if word.startswith("--")}
        assert all(f'"{option}"' in (ROOT / program).read_text() for option in options)


def test_every_link_and_file_of_the_page_exists():
    for name in re.findall(r"`(examples/\S*)`", TEXT):
        assert (ROOT / name).exists()
