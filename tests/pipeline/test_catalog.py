"""The catalog: every path that matches is a file, a refusal or ignored, and has one identity."""

from __future__ import annotations

import glob
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trialfolders import build_checked, make_spec, quarantine_of, write_spec, write_trials

from pipeline.build import build
from pipeline.catalog import (
    BYTES_PER_BUCKET,
    Catalog,
    bucket_of,
    count_buckets,
    scan_files,
)
from pipeline.ledger import load_catalog, save_catalog
from pipeline.paths import find_paths, identify_trial
from pipeline.sections import SourceSpec
from shards.errors import InvalidSpecError, TooManyQuarantinedError


def touch(root: Path, *names: str, text: str = "x,y\n1,2\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def scan(root: Path, files: str = "raw/**/*.csv", trial_id: str | None = None, **sections):
    source = {"files": files} | ({"trial_id": trial_id} if trial_id else {})
    return scan_files(root, make_spec(source=source, **sections))


def by_path(catalog: Catalog) -> dict[str, str]:
    """Return path -> trial id, or refusal code; no path may occur twice."""
    pairs = [(file.path, file.trial_id) for file in catalog.files]
    pairs += [(refusal.source, refusal.code) for refusal in catalog.refusals]
    assert len(dict(pairs)) == len(pairs)
    assert catalog.n_files == len(pairs) + sum(catalog.ignored.values())
    return dict(pairs)


# --- identity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "path", "trial_id"),
    [
        ("raw/**/*.csv", "raw/s01/a.csv", "s01/a"),
        ("raw/**/*.csv", "raw/a.csv", "a"),
        ("raw/*/trial_*.csv", "raw/s01/trial_7.csv", "s01/trial_7"),
        ("data/raw/v2/*.csv", "data/raw/v2/a.b.csv", "a.b"),
        ("*.csv", "a.csv", "a"),
        ("**/*", "s/t/no_suffix", "s/t/no_suffix"),
        ("raw/only.csv", "raw/only.csv", "only"),
        ("raw/s[12]/*.csv", "raw/s1/a.csv", "s1/a"),
        ("raw/*.csv.gz", "raw/a.csv.gz", "a"),
        ("raw/*.psv.zst", "raw/a.b.PSV.ZST", "a.b"),
        ("raw/*.gz", "raw/a.gz", "a"),
    ],
)
def test_the_default_id_is_the_path_below_the_fixed_folders_without_suffix(
    files: str, path: str, trial_id: str
):
    assert identify_trial(path, SourceSpec(files=files)) == (trial_id, {})


NAMES = st.text("ab.GgZzSsTt", min_size=1, max_size=12).filter(lambda name: name[0] != ".")


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_suffix_is_what_pathlib_says(parts: list[str]):
    path = "/".join(parts)
    below = PurePosixPath(path)
    while below.suffix.lower() in (".gz", ".zst"):
        below = below.with_suffix("")
    wanted = below.with_suffix("").as_posix()
    assert identify_trial(f"raw/{path}", SourceSpec(files="raw/**/*")) == (wanted, {})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"s\d+/trial_\d+", ("s07/trial_0031", {})),
        (r"(?P<subject>s\d+)/trial_\d+", ("s07/trial_0031", {"subject": "s07"})),
        (r"(?P<subject>s\d+)/trial_(?P<id>\d+)", ("0031", {"subject": "s07"})),
        (r"(?P<subject>s\d+)/(?P<pilot>pilot_)?trial", ("s07/trial", {"subject": "s07"})),
        (r"(?P<id>nowhere)", None),
        (r"(?P<letter>z*)", None),
    ],
)
def test_a_pattern_gives_the_match_or_its_id_group_and_the_other_groups(
    pattern: str, expected: object
):
    source = SourceSpec(files="raw/**/*.csv", trial_id=pattern)
    assert identify_trial("raw/s07/trial_0031.csv", source) == expected


def test_files_come_sorted_with_size_and_time(tmp_path: Path):
    touch(tmp_path, "raw/b.csv", "raw/a.csv", "raw/s/c.csv", "elsewhere.csv", "raw/d.txt")
    catalog = scan(tmp_path)
    assert [file.path for file in catalog.files] == ["raw/a.csv", "raw/b.csv", "raw/s/c.csv"]
    for file in catalog.files:
        seen = (tmp_path / file.path).stat()
        assert (file.size_bytes, file.mtime_ns) == (seen.st_size, seen.st_mtime_ns)


# --- refusals ---------------------------------------------------------------------------------


def test_a_path_that_the_pattern_does_not_match_is_refused(tmp_path: Path):
    touch(tmp_path, "raw/t1.csv", "raw/notes.csv")
    catalog = scan(tmp_path, trial_id=r"t\d")
    assert by_path(catalog) == {"raw/t1.csv": "t1", "raw/notes.csv": "no_trial_id"}
    assert r"'t\\d'" in catalog.refusals[0].message
    assert "Widen the pattern" in catalog.refusals[0].message


def test_every_claimant_of_an_id_is_refused(tmp_path: Path):
    touch(tmp_path, "raw/s1/a.csv", "raw/s2/a.csv", "raw/s3/a.csv", "raw/s3/b.csv")
    catalog = scan(tmp_path, trial_id=r"(?P<id>\w)\.csv")
    claims = dict.fromkeys(["raw/s1/a.csv", "raw/s2/a.csv", "raw/s3/a.csv"], "duplicate_id")
    assert by_path(catalog) == {**claims, "raw/s3/b.csv": "b"}
    assert all("3 files have the trial id 'a'" in refusal.message for refusal in catalog.refusals)


def test_what_is_no_readable_file_is_refused_and_the_rest_stays(tmp_path: Path):
    touch(tmp_path, "raw/a.csv", "raw/real.txt")
    (tmp_path / "raw" / "folder.csv").mkdir()
    (tmp_path / "raw" / "gone.csv").symlink_to(tmp_path / "raw" / "nowhere")
    (tmp_path / "raw" / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "raw" / "link.csv").symlink_to("real.txt")
    os.mkfifo(tmp_path / "raw" / "pipe.csv")
    assert by_path(scan(tmp_path)) == {
        "raw/a.csv": "a",
        "raw/link.csv": "link",
        "raw/folder.csv": "not_a_file",
        "raw/pipe.csv": "not_a_file",
        "raw/gone.csv": "unreadable",
        "raw/loop.csv": "unreadable",
    }


def test_hidden_paths_are_ignored_and_counted(tmp_path: Path):
    touch(tmp_path, "raw/a.csv", "raw/.b.csv", "raw/.cache/c.csv", "raw/s/.d.csv")
    catalog = scan(tmp_path)
    assert by_path(catalog) == {"raw/a.csv": "a"}
    assert catalog.ignored == {"hidden": 3}
    assert catalog.n_files == 4


def test_a_glob_that_matches_nothing_is_an_error_that_names_glob_and_root(tmp_path: Path):
    touch(tmp_path, "raw/a.txt")
    with pytest.raises(InvalidSpecError) as caught:
        scan(tmp_path)
    for part in ("'raw/**/*.csv'", str(tmp_path), "Mend the glob"):
        assert part in str(caught.value)


def test_files_that_match_but_are_all_refused_are_not_called_absent(tmp_path: Path):
    touch(tmp_path, "raw/a.csv", "raw/b.csv")
    path = write_spec(tmp_path, source={"trial_id": r"subject\d+"})
    with pytest.raises((InvalidSpecError, TooManyQuarantinedError), match="trial_id"):
        build(path, tmp_path / "store")


def test_a_file_that_the_glob_finds_twice_is_one_file(tmp_path: Path):
    touch(tmp_path, "raw/s/a.csv", "raw/s/b.csv")
    assert by_path(scan(tmp_path, "raw/**/**/*.csv")) == {
        "raw/s/a.csv": "s/a",
        "raw/s/b.csv": "s/b",
    }


def test_a_name_that_is_no_utf_8_is_refused_alone(tmp_path: Path):
    touch(tmp_path, "raw/a.csv")
    Path(os.fsdecode(os.fsencode(tmp_path / "raw") + b"/\xff.csv")).write_text("x,y\n1,2\n")
    catalog = scan(tmp_path)
    assert [file.trial_id for file in catalog.files] == ["a"]
    assert [refusal.code for refusal in catalog.refusals] == ["path_not_utf8"]
    # The quarantine is UTF-8, and its reader should still find the file.
    assert catalog.refusals[0].source.encode().endswith(b"ff.csv")
    assert catalog.n_files == 2


def test_names_with_blanks_commas_and_letters_of_all_kinds_are_names(tmp_path: Path):
    names = ["a b", "a,b", "ä", "日本", "a=b|c", "quote'\"", "x[1]"]
    touch(tmp_path, *(f"raw/{name}.csv" for name in names))
    path = write_spec(tmp_path, windows={"length": 1, "target": {"horizon": 1}})
    _, store = build_checked(path, tmp_path / "store")
    ids = [store.index.id_of(i) for i in range(len(names))]
    assert ids == sorted(names, key=str.encode)
    assert [store.trial_number(name) for name in ids] == list(range(len(names)))


# --- symbolic links ---------------------------------------------------------------------------


def test_a_file_is_here_once_by_its_own_path(tmp_path: Path):
    touch(tmp_path, "raw/z.csv", "raw/s/b.csv", "elsewhere/c.csv")
    (tmp_path / "raw/a.csv").symlink_to("z.csv")
    (tmp_path / "raw/again").symlink_to("s")
    (tmp_path / "raw/s/away").symlink_to(tmp_path / "elsewhere")
    catalog = scan(tmp_path)
    # Behind `again` lies `s/away` too, but links inside of links lead to each folder only once.
    assert by_path(catalog) == {
        "raw/z.csv": "z",
        "raw/s/b.csv": "s/b",
        "raw/s/away/c.csv": "s/away/c",
    }
    assert catalog.ignored == {"alias": 2}


def test_of_links_to_one_file_that_is_not_here_the_first_counts(tmp_path: Path):
    touch(tmp_path, "blobs/x", "blobs/y")
    (tmp_path / "raw").mkdir()
    for name, target in (("b", "x"), ("a", "x"), ("c", "y")):
        (tmp_path / f"raw/{name}.csv").symlink_to(f"../blobs/{target}")
    catalog = scan(tmp_path)
    assert by_path(catalog) == {"raw/a.csv": "a", "raw/c.csv": "c"}
    assert catalog.ignored == {"alias": 1}


def test_hard_links_are_files_of_their_own(tmp_path: Path):
    touch(tmp_path, "raw/a.csv")
    (tmp_path / "raw/b.csv").hardlink_to(tmp_path / "raw/a.csv")
    assert by_path(scan(tmp_path)) == {"raw/a.csv": "a", "raw/b.csv": "b"}


def test_a_link_that_has_the_id_beats_a_file_that_has_none(tmp_path: Path):
    touch(tmp_path, "raw/blob.csv")
    (tmp_path / "raw/t1.csv").symlink_to("blob.csv")
    catalog = scan(tmp_path, trial_id=r"t\d")
    assert by_path(catalog) == {"raw/t1.csv": "t1", "raw/blob.csv": "no_trial_id"}


def test_the_root_and_the_fixed_folders_may_be_links(tmp_path: Path):
    touch(tmp_path, "store/s/a.csv")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/raw").symlink_to(tmp_path / "store")
    (tmp_path / "here").symlink_to("root")
    catalog = scan(tmp_path / "here")
    assert by_path(catalog) == {"raw/s/a.csv": "s/a"}
    assert catalog.ignored == {}


@pytest.mark.parametrize(
    "links",
    [
        {"raw/s/up": ".."},
        {"raw/here": "."},
        {"raw/root": "/"},
        {"raw/s/t": "../t", "raw/t/s": "../s"},
        {f"raw/{a}/{b}": f"../{b}" for a in "stuvwxyz" for b in "stuvwxyz" if a != b},
    ],
)
def test_links_in_a_circle_end(links: dict[str, str], tmp_path: Path):
    folders = sorted({Path(link).parent.name for link in links} - {"raw"} | {"s"})
    touch(tmp_path, *(f"raw/{folder}/a.csv" for folder in folders))
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    catalog = scan(tmp_path)
    assert [file.path for file in catalog.files] == [f"raw/{f}/a.csv" for f in folders]
    assert catalog.refusals == ()
    assert set(catalog.ignored) <= {"alias"}


def test_a_pattern_may_go_up_a_link_as_far_as_it_says(tmp_path: Path):
    touch(tmp_path, "raw/a.csv")
    (tmp_path / "raw/s").mkdir()
    (tmp_path / "raw/s/up").symlink_to("..")
    assert find_paths(tmp_path, "raw/*/*/*.csv") == {"raw/s/up/a.csv": True}
    assert find_paths(tmp_path, "raw/s/up/*.csv") == {"raw/s/up/a.csv": False}
    assert find_paths(tmp_path, "raw/*/up/a.csv") == {"raw/s/up/a.csv": True}


tree = st.lists(
    st.lists(st.sampled_from(["a", "b", ".c"]), min_size=1, max_size=3), min_size=1, max_size=6
)


@given(
    tree=tree,
    parts=st.lists(st.sampled_from(["**", "*", "a", "[ab]", "?", ".c", "z"]), max_size=3),
    last=st.sampled_from(["*.csv", "a.csv", "*", "[!a].csv", "z.csv"]),
)
def test_without_links_paths_are_those_of_glob(
    tree: list[list[str]], parts: list[str], last: str, tmp_path_factory: pytest.TempPathFactory
):
    root = tmp_path_factory.mktemp("tree")
    touch(root, *("/".join(path) + ".csv" for path in tree))
    pattern = "/".join([*parts, last])
    wanted = glob.glob(pattern, root_dir=root, recursive=True, include_hidden=True)  # noqa: PTH207
    assert find_paths(root, pattern) == dict.fromkeys(wanted, False)


@given(
    tree=tree,
    links=st.dictionaries(
        st.tuples(st.sampled_from(["", "a/", "b/"]), st.sampled_from("xyz")),
        st.sampled_from([".", "a", "b", "a/x", "b/y", "x", "y", "nowhere", "a.csv", "a/b.csv"]),
        max_size=6,
    ),
    suffix=st.sampled_from(["", ".csv"]),
)
def test_with_links_every_path_is_in_one_place_and_every_file_once(
    tree: list[list[str]],
    links: dict[tuple[str, str], str],
    suffix: str,
    tmp_path_factory: pytest.TempPathFactory,
):
    root = tmp_path_factory.mktemp("tree")
    touch(root, "raw/a.csv", *("raw/" + "/".join(path) + ".csv" for path in tree))
    for (folder, name), target in links.items():
        if (root / "raw" / folder).is_dir():
            (root / "raw" / folder / (name + suffix)).symlink_to(root / "raw" / target)
    real_root = os.path.realpath(root)
    catalog = scan(root)
    placed = by_path(catalog)
    matched = find_paths(root, "raw/**/*.csv")
    assert catalog.n_files == len(matched)
    assert set(placed) <= set(matched)
    real = [os.path.realpath(root / file.path) for file in catalog.files]
    assert len(set(real)) == len(real)
    own = {path for path in matched if os.path.realpath(root / path) == f"{real_root}/{path}"}
    files = {path for path in own if "/." not in path and (root / path).is_file()}
    assert files <= {file.path for file in catalog.files}


# --- attributes from tables -------------------------------------------------------------------


def scan_table(root: Path, text: str, **attribute: object) -> Catalog:
    touch(root, "raw/e0001.csv", "raw/e0002.csv", "raw/e0003.csv")
    (root / "table.csv").write_text(text)
    entry = {"table": "table.csv", "trial_id": "e{unit:04d}", "column": "rul", **attribute}
    return scan(root, attributes={"end": entry})


def test_a_table_gives_each_trial_its_row(tmp_path: Path):
    catalog = scan_table(tmp_path, "rul,unit\n30,3\n10,1\n20,2\n99,77\n")
    assert [file.attributes for file in catalog.files] == [
        {"end": "10"},
        {"end": "20"},
        {"end": "30"},
    ]


def test_a_trial_without_a_row_is_refused_and_a_default_saves_it(tmp_path: Path):
    table = "unit,rul\n1,10\n2,\n"
    catalog = scan_table(tmp_path, table)
    refused = dict.fromkeys(["raw/e0002.csv", "raw/e0003.csv"], "no_table_row")
    assert by_path(catalog) == {"raw/e0001.csv": "e0001", **refused}
    assert "give attributes.end.default" in catalog.refusals[0].message
    saved = scan_table(tmp_path, table, default="none")
    assert [file.attributes["end"] for file in saved.files] == ["10", "none", "none"]


@pytest.mark.parametrize(
    ("table", "attribute", "message"),
    [
        ("unit,rul\n1,10\n1,11\n", {}, "names trial 'e0001' twice"),
        ("unit,rul\n1,10\n", {"trial_id": "e{engine}"}, "KeyError: 'engine'.*columns: unit, rul"),
        ("unit,rul\n1,10\n", {"trial_id": "e{unit:04q}"}, "cannot be filled.*ValueError"),
        ("unit,rul\n1,10\n", {"trial_id": "e{unit"}, "cannot be filled.*ValueError"),
        ("unit,rul\n1,10\n", {"trial_id": "e{}"}, "cannot be filled.*IndexError"),
        ("unit,rul\nx,10\n", {}, "cannot be filled.*ValueError"),
        ("unit,rul\n1,10\n", {"column": "life"}, "no column 'life'; it has: unit, rul"),
        ("unit,rul\n1,10\n", {"table": "absent.csv"}, "cannot read absent.csv"),
        ("", {}, "cannot read table.csv"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(
    table: str, attribute: dict[str, str], message: str, tmp_path: Path
):
    with pytest.raises(InvalidSpecError, match=rf"(?s)attributes\.end.*{message}"):
        scan_table(tmp_path, table, **attribute)


@pytest.mark.parametrize(
    ("table", "trial_id"),
    [
        ("unit,rul\n1,10\n,11\n", "e{unit:04d}"),
        ("unit,rul\n1,10\n,11\n", "e{unit[0]}"),
        ("unit,rul\n1,10\n", "e{unit.x}"),
    ],
)
def test_a_row_that_names_no_trial_is_an_error_in_a_sentence(
    table: str, trial_id: str, tmp_path: Path
):
    with pytest.raises(InvalidSpecError, match=r"attributes\.end"):
        scan_table(tmp_path, table, trial_id=trial_id)


def test_a_cell_is_text_and_may_be_cut_like_text(tmp_path: Path):
    catalog = scan_table(tmp_path, "unit,rul\n1st,10\n2nd,20\n3rd,30\n", trial_id="e000{unit[0]}")
    assert [file.attributes["end"] for file in catalog.files] == ["10", "20", "30"]


def test_text_of_a_table_keeps_its_leading_zeros(tmp_path: Path):
    touch(tmp_path, "raw/0001.csv", "raw/0002.csv")
    (tmp_path / "table.csv").write_text("trial,kind\n0001,007\n0002,008\n")
    entry = {"table": "table.csv", "trial_id": "{trial}", "column": "kind"}
    catalog = scan(tmp_path, attributes={"kind": entry})
    assert [file.attributes for file in catalog.files] == [{"kind": "007"}, {"kind": "008"}]


def test_a_default_is_the_value_that_the_table_would_hold(tmp_path: Path):
    catalog = scan_table(tmp_path, "unit,rul\n1,0\n2,1\n", default=0)
    assert [file.attributes["end"] for file in catalog.files] == ["0", "1", "0"]


def test_rows_that_name_no_trial_are_warned_of(tmp_path: Path):
    catalog = scan_table(tmp_path, "unit,rul\n1,1\n2,2\n3,3\n77,4\n")
    (warning,) = catalog.warnings
    assert warning.startswith("attributes.end: 1 row of table.csv names no trial, such as 'e0077'")
    # A trial that is refused for another reason is no mistake in the table.
    touch(tmp_path, "raw/e0077/e0001.csv", "raw/e0077.csv", "raw/e0077/e0077.csv")
    entry = {"table": "table.csv", "trial_id": "e{unit:04d}", "column": "rul"}
    again = scan(tmp_path, trial_id=r"e\d+(?=\.csv)", attributes={"end": entry})
    assert by_path(again)["raw/e0077.csv"] == "duplicate_id"
    assert again.warnings == ()


def test_where_a_file_holds_many_trials_no_table_is_joined_yet(tmp_path: Path):
    touch(tmp_path, "raw/all.csv")
    entry = {"table": "absent.csv", "trial_id": "e{unit}", "column": "rul"}
    spec = make_spec(source={"split_on": ["unit"]}, attributes={"end": entry})
    catalog = scan_files(tmp_path, spec)
    assert by_path(catalog) == {"raw/all.csv": "all"}
    assert catalog.warnings == ()


def test_warnings_survive_the_disk(tmp_path: Path):
    catalog = scan_table(tmp_path, "unit,rul\n1,1\n2,2\n3,3\n77,4\n")
    save_catalog(tmp_path / "catalog.parquet", catalog)
    assert load_catalog(tmp_path / "catalog.parquet", tmp_path) == catalog


# --- buckets ----------------------------------------------------------------------------------


@given(st.integers(0, 2**45), st.one_of(st.just("auto"), st.integers(1, 5000)))
def test_the_number_of_buckets_is_the_next_power_of_two(n_bytes: int, wanted: int | str):
    n_buckets = count_buckets(n_bytes, wanted)
    least = max(1, -(-n_bytes // BYTES_PER_BUCKET)) if wanted == "auto" else int(wanted)
    assert n_buckets.bit_count() == 1
    assert least <= n_buckets < 2 * least


def test_a_file_below_256_mib_needs_one_bucket():
    assert count_buckets(0, "auto") == count_buckets(2**28, "auto") == 1
    assert count_buckets(2**28 + 1, "auto") == 2
    assert [count_buckets(0, n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]


@given(st.text(max_size=30), st.integers(0, 12))
def test_doubling_the_buckets_splits_each_in_two(path: str, power: int):
    few = bucket_of(path, 2**power)
    assert 0 <= few < 2**power
    assert bucket_of(path, 2 ** (power + 1)) in (few, few + 2**power)


def test_buckets_are_pinned_and_even():
    paths = [f"raw/s{i % 7}/trial_{i:04d}.csv" for i in range(4000)]
    counts = [0] * 8
    for path in paths:
        counts[bucket_of(path, 8)] += 1
    assert all(420 <= n <= 580 for n in counts)
    # A pinned value: another hash would move every file of every store.
    assert [bucket_of(path, 1024) for path in paths[:4]] == PINNED_BUCKETS


PINNED_BUCKETS = [408, 603, 908, 10]


# --- conservation -----------------------------------------------------------------------------


def test_every_path_is_in_exactly_one_place(tmp_path: Path):
    trials = write_trials(tmp_path, 12)
    touch(tmp_path, "raw/.hidden.csv", "raw/g0/.also.csv", "raw/odd.csv", "raw/g9/t00.csv")
    (tmp_path / "raw" / "folder.csv").mkdir()
    (tmp_path / "raw" / "gone.csv").symlink_to("nowhere")
    path = write_spec(
        tmp_path,
        source={"trial_id": r"g\d/(?P<id>t\d+)"},
        max_quarantined=0.5,
        shards={"buckets": 4},
    )
    report, store = build_checked(path, tmp_path / "store")
    assert report.counts["files"] == len(trials) + 6
    assert report.counts["ignored"] == {"hidden": 2}
    assert quarantine_of(store) == {
        "raw/odd.csv": "no_trial_id",
        "raw/g0/t00.csv": "duplicate_id",
        "raw/g9/t00.csv": "duplicate_id",
        "raw/folder.csv": "not_a_file",
        "raw/gone.csv": "unreadable",
    }
    assert len(store.index) == len(trials) - 1
