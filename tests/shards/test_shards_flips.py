"""No byte of any file of a store, whatever its shape, changes without verify naming it.

The gate damages every other byte of the shards, `make soak` every one.
"""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from stores import SHAPES, make_store
from vandal import into_parts

from shards import TrialShardsError, WindowSpec
from shards.verify import verify_store

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numpy", "pyarrow.parquet", "pytest", "shards.verify"])
KINDS = [f"{layout} {container}" for layout, container in SHAPES]
TRIALS = ["t0000", "t0001"]
STEP = 1 if os.environ.get("SOAK") else 2


def files_of(store):
    """Return the files of a store in groups; the files of one fail apart from each other."""
    paths = [p for p in sorted(store.rglob("*")) if p.is_file() and p.name != "latest.json"]
    groups = {"manifest": [], "versions": [], "shards": []}
    for path in paths:
        top = path.relative_to(store).parts[0]
        group = "manifest" if path.name == "dataset.json" else top.replace("parts", "shards")
        groups[group].append(path)
    assert all(groups.values())
    return groups


def damage(good, position, step):
    """Flip one bit, or swap a byte with another one further on; None where that changes nothing."""
    if position >= len(good):
        return None
    changed = bytearray(good)
    if step == 0:
        changed[position] ^= 1 << position % 8
    else:
        other = (position + step) % len(good)
        changed[position], changed[other] = changed[other], changed[position]
    return None if changed == good else bytes(changed)


def cut(good, position):
    return good[:position] if position < len(good) else None


def blamed(store, path):
    """Return whom verify blames for a damaged file: where, and which trials; or what it raises."""
    try:
        return [(p.where, list(p.trials)) for p in verify_store(store)]
    except TrialShardsError as error:
        return [(str(path) if str(path) in str(error) else str(error), "raised")]


def is_named(path, group, found):
    """Whether a file's damage is told: by its name or its folder's, and with the shard's trials."""
    trials = {"manifest": "raised", "versions": [], "shards": TRIALS}[group]
    return any(
        (str(path) == where or (group == "shards" and str(path).startswith(f"{where}/")))
        and told == trials
        for where, told in found
    )


def damage_every_byte(store, report):
    """Damage the files of each group in all places, one place of each file at a time.

    Files of one group are damaged together: each must be named for itself.
    """
    wrong, n_places = [], 0
    number = KINDS.index(store.name.replace("-", " "))
    for group, paths in files_of(store).items():
        good = {path: path.read_bytes() for path in paths}
        longest = max(map(len, good.values()))
        # From byte 0 in one shape, from 1 in the next: their files are much alike.
        step = STEP if group == "shards" else 1
        ways = [lambda g, at, n=step: damage(g, at, 0) if (at - number) % n == 0 else None]
        if group == "shards":
            ways.append(lambda g, at: damage(g, at, 7) if at % 16 == 0 else None)
            ways.append(lambda g, at: cut(g, at) if at % 16 == 1 else None)
        for way in ways:
            # What lies in a version's folder is alike in all shapes: each takes its fourth of it.
            places = range(longest) if group == "shards" else range(number, longest, len(KINDS))
            for at in places:
                bad = {p: c for p, g in good.items() if (c := way(g, at)) is not None}
                for path, content in bad.items():
                    path.write_bytes(content)
                found = blamed(store, paths[0]) if bad else []
                wrong += [f"{p} {at}: {found}" for p in bad if not is_named(p, group, found)]
                n_places += len(bad)
                for path in bad:
                    path.write_bytes(good[path])
    after = [str(problem) for problem in verify_store(store)]
    report.write_text(json.dumps({"wrong": wrong[:5], "places": n_places, "after": after}))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What verify misses of each shape, found in processes of their own."""
    root = tmp_path_factory.mktemp("flips")
    jobs = {}
    for kind in KINDS:
        path, (layout, container) = root / kind.replace(" ", "-"), kind.split()
        store = make_store(
            path, [2, 3], n_channels=1, missing=kind == KINDS[0], layout=layout,
            container=container, windows=WindowSpec(length=2, stride=1, steps=1),
        )  # fmt: skip
        if kind == "rows parquet":
            into_parts(store)
        assert verify_store(path) == []
        report = root / f"{path.name}.json"
        job = CONTEXT.Process(target=damage_every_byte, args=(path, report), daemon=True)
        jobs[kind] = (job, report)
        job.start()
    found = {}
    for kind, (job, report) in jobs.items():
        job.join()
        assert job.exitcode == 0, f"verify died over {kind}"
        found[kind] = json.loads(report.read_bytes())
    shutil.rmtree(root)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_swapped_or_cut_byte_is_named_with_its_trials(told, kind):
    assert told[kind]["places"] > 1000
    assert told[kind]["wrong"] == []
    assert told[kind]["after"] == []


def test_the_groups_hold_every_file_of_a_store(tmp_path):
    store = into_parts(make_store(tmp_path, [2, 3], container="parquet"))
    files = {path for group in files_of(tmp_path).values() for path in group}
    assert {p.relative_to(tmp_path).parts[0] for p in files} == {"versions", "shards", "parts"}
    assert len(files) == sum(1 for p in Path(store.path).rglob("*") if p.is_file()) - 1
