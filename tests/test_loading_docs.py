"""docs/loading.md is right: its snippets and commands run in their order, its tables are so."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from armstores import ROOT, build_arm_stores
from click.testing import CliRunner

from loaders import Batch, BlockShuffle, LaneBatches, TrialBatches, TrialStream, WindowBatches, mix
from shards.compact import compact_store
from shards.errors import ResumeError
from shards.manifest import TargetSchema
from trialshards.cli import main

TEXT = (ROOT / "docs" / "loading.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = "".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    build_arm_stores(folder, 96)
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the page says arm, not where it is


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the snippets define, run one after the other."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"loading.md, block {number}", "exec"), names)
    return names


def ids(stream: TrialStream) -> set[str]:
    numbers = {n for batch in stream for n in batch.trial.tolist()} - {-1}
    return {stream.store.index.id_of(n) for n in numbers}


def tables() -> list[list[list[str]]]:
    """Return the cells of the page's tables, rows without the header."""
    found = re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE)
    return [
        [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in part.splitlines()[2:]]
        for part in found
    ]


def refusal(stream: TrialStream, state: dict[str, Any]) -> str:
    with pytest.raises(ResumeError) as caught:
        stream.load_state_dict(state)
    return str(caught.value)


def test_the_snippets_run_and_give_what_they_say(names):
    assert names["trial"].n_rows > 64
    assert ids(names["two"]) == {"s01/trial_0001", "s04/trial_0006"}
    assert {name[:3] for name in ids(names["some"])} == {"s01", "s04"}
    assert all(torch.isfinite(part).all() and part.any() for part in names["carried"])
    assert names["longer"].windows.length == 128
    assert names["joints"].n_targets == 2


def test_the_table_of_a_batch_is_that_of_the_class(names, folder):
    rows = tables()[0]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted(field.name for field in fields(Batch))
    streams = [
        names["stream"],
        TrialStream(folder / "arm", batches=LaneBatches(64, 16), batch_size=8),
        mix([names["stream"]]),
    ]
    said = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    seen = set()
    for batch in (next(iter(stream)) for stream in streams):
        sizes = {"B": len(batch), "L": batch.values.shape[1], "C": 9, "K": 3, "steps": 1}
        for name, value in vars(batch).items():
            if value is None:
                continue
            kind, shape = said[name][1], said[name][2].strip("`[]")
            seen.add(name)
            if not isinstance(value, torch.Tensor):
                assert type(value).__name__ == kind
                continue
            assert str(value.dtype) == f"torch.{kind}"
            shape = "B, L, steps, K" if name == "targets" and value.ndim == 4 else shape
            assert list(value.shape) == [sizes[axis] for axis in shape.split(", ")]
    absent = {"codes", "statics", "static_codes", "regimes", "window_offset", "window_scale"}
    assert seen == {field.name for field in fields(Batch)} - absent


def test_the_loop_over_lanes_carries_each_trial_through_and_none_into_the_next():
    (loop,) = (block for block in BLOCKS if "for batch in lanes" in block)
    loop = loop.replace("lr=3e-3", "lr=0.0").replace(
        "    optimizer.zero", "    seen.append((batch, states.detach()))\n    optimizer.zero"
    )
    names = {"seen": [], "torch": torch, "nn": torch.nn, "TrialStream": TrialStream}
    exec(loop, names)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 24
    parts: dict[int, list[Any]] = {}
    for batch, states in names["seen"]:
        share = batch.weights / batch.counts.sum(1).clamp(min=1)
        assert set(share[batch.counts.any(1)].tolist()) == {1 / 64}
        for row, number in enumerate(batch.trial.tolist()):
            if number >= 0:
                n = int(batch.lengths[row])
                parts.setdefault(number, []).append((batch.values[row, :n], states[row, :n]))
    for pieces in parts.values():
        values, states = (torch.cat([piece[i] for piece in pieces]) for i in (0, 1))
        with torch.no_grad():
            assert torch.allclose(names["lstm"](values[None])[0][0], states, atol=1e-5)
    assert len(parts) == 77


def test_the_shuffles_are_as_the_page_says(folder):
    assert BlockShuffle() == BlockShuffle(16 * 2**20, 256 * 2**20)
    assert TrialBatches().max_padding == 0.1
    for word in ("16 MiB", "256 MiB", "by default 0.1"):
        assert word in TEXT
    found = [
        place
        for batch in TrialStream(folder / "arm", shuffle="none")
        for place in zip(batch.trial.tolist(), batch.start.tolist(), strict=True)
        if place[0] >= 0
    ]
    assert found == sorted(found)


def test_ranks_share_a_step_and_its_loss(names, folder):
    model, batch_loss = names["model"], names["batch_loss"]
    whole = list(TrialStream(folder / "arm", batch_size=64))
    parts = [
        list(TrialStream(folder / "arm", batch_size=64, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for step in (0, len(whole) - 1):
        together = torch.cat([part[step].values for part in parts])
        assert torch.equal(together, whole[step].values)
        with torch.no_grad():
            losses = [batch_loss(model(p[step].values), p[step], world_size=3) for p in parts]
            alone = batch_loss(model(whole[step].values), whole[step])
        assert float(sum(losses)) / 3 == pytest.approx(float(alone), rel=1e-4)


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("plan", {"batch_size": 32}), ("plan", {"batches": "trials"}), ("plan", {"batches": "lanes"}),
    ("plan", {"batches": WindowBatches(stride=4)}), ("plan", {"shuffle": "none"}),
    ("plan", {"balance": "sqrt"}), ("plan", {"weights": "trial"}), ("seed", {"seed": 1}),
    ("plan", {"target": TargetSchema("forecast", ("q1",))}), ("trials", {"where": "n_rows > 300"}),
    ("fingerprint", {"split": "val"}),
]  # fmt: skip


@pytest.mark.parametrize(("differs", "change"), CHANGES)
def test_a_state_is_refused_where_the_page_says(names, folder, differs, change):
    other = TrialStream(folder / "arm", **{"batch_size": 64, **change})
    assert f"{differs}: got" in refusal(other, names["state"])


def test_a_state_goes_on_after_compact_but_not_with_blocks(names, folder, tmp_path):
    shutil.copytree(folder / "arm", tmp_path / "arm")
    assert compact_store(tmp_path / "arm", force=True).version == "v0002"
    again = TrialStream(tmp_path / "arm", batch_size=64, rank=0, world_size=2)
    again.load_state_dict(names["state"])
    assert next(iter(again)).step == 21
    blocks = TrialStream(tmp_path / "arm", shuffle=names["pooled"].options.blocks)
    assert "plan: got" in refusal(blocks, names["pooled"].state_dict())


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_run(line):
    program, *words = line.split()
    assert program == "trialshards"
    done = CliRunner().invoke(main, [*words, "--seconds", "0.1"])
    # The doctor may well find something on the machine of who runs this test.
    assert done.exit_code in ((0, 1) if words[0] == "doctor" else (0,)), done.output
    assert ("in process" if words[0] == "plan" else "checks") in done.output


def test_every_link_leads_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    }
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
        assert target or anchor in anchors, anchor
