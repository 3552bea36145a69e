"""Maps: many files behind one address range; no descriptor kept, nothing mapped that is short."""

import gc
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stores import make_store

from shards import CorruptStoreError
from shards.maps import FileRange

PAGE = mmap.ALLOCATIONGRANULARITY


def write_files(folder, sizes):
    files = []
    for number, size in enumerate(sizes):
        path = folder / f"part{number}.bin"
        path.write_bytes(random.Random(number).randbytes(size))
        files.append((path, size))
    return files


def maps_below(folder):
    """Lines of the kernel's list of this process's maps that name a file in `folder`."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if f"{folder}/" in line]


def open_descriptors():
    return [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]


def test_three_hundred_files_read_as_their_bytes_at_page_aligned_offsets(tmp_path):
    sizes = [1 + (37 * i) % (2 * PAGE) for i in range(300)]
    files = write_files(tmp_path, sizes)
    found = FileRange(files)
    assert len(found.offsets) == 300
    assert (found.offsets % PAGE == 0).all()
    assert (found.offsets[1:] >= found.offsets[:-1] + np.array(sizes[:-1])).all()
    for (path, size), offset in zip(files, found.offsets.tolist(), strict=True):
        assert found.bytes[offset : offset + size].tobytes() == path.read_bytes()


def test_mapping_leaves_no_descriptor_open(tmp_path):
    files = write_files(tmp_path, [100] * 300)
    before = len(open_descriptors())
    found = FileRange(files)
    assert found.bytes[found.offsets].any()
    assert len(maps_below(tmp_path)) == 300
    assert not [fd for fd in open_descriptors() if fd.readlink().is_relative_to(tmp_path)]
    assert len(open_descriptors()) == before


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
@pytest.mark.parametrize("tail", [0, 1, 16, PAGE, 5 * PAGE])
def test_gaps_and_tail_are_readable_zeros(tmp_path, size, tail):
    files = write_files(tmp_path, [size, size])
    found = FileRange(files, tail_bytes=tail)
    assert found.bytes.size >= int(found.offsets[-1]) + size + tail
    assert not found.bytes[size : int(found.offsets[1])].any()
    assert not found.bytes[int(found.offsets[1]) + size :].any()  # touches up to the last byte


def test_no_files_are_still_a_readable_tail():
    found = FileRange([], tail_bytes=100)
    assert found.offsets.size == 0
    assert found.bytes.size >= 100
    assert not found.bytes.any()


@pytest.mark.parametrize("change", [-1, 1, -100])
def test_a_file_of_another_size_is_refused_before_anything_is_mapped(tmp_path, change):
    files = write_files(tmp_path, [100, 5000, 100])
    path, size = files[1]
    os.truncate(path, size + change)
    with pytest.raises(
        CorruptStoreError, match=f"{path} has {size + change} bytes.*{size}.*verify"
    ):
        FileRange(files)
    assert maps_below(tmp_path) == []


def test_a_missing_file_is_named_before_anything_is_mapped(tmp_path):
    files = write_files(tmp_path, [100, 100])
    files[1][0].unlink()
    with pytest.raises(CorruptStoreError, match=f"{files[1][0]} is missing"):
        FileRange(files)
    assert maps_below(tmp_path) == []


def test_a_range_that_the_system_cannot_reserve_is_an_error_not_a_pointer():
    with pytest.raises(OSError, match="cannot reserve"):
        FileRange([], tail_bytes=1 << 62)


def test_bytes_cannot_be_written_through_any_view(tmp_path):
    found = FileRange(write_files(tmp_path, [4096]))
    view = found.bytes[:16].view(np.float32)
    for array in (found.bytes, view, view.reshape(2, 2)):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            array.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        found.bytes[0] = 1
    assert {line.split()[1] for line in maps_below(tmp_path)} == {"r--s"}


def test_an_array_keeps_the_map_alive_when_the_range_is_gone(tmp_path):
    files = write_files(tmp_path, [5000, 5000])
    found = FileRange(files)
    view = found.bytes[int(found.offsets[1]) :][:5000]
    del found
    gc.collect()
    assert len(maps_below(tmp_path)) == 2
    assert view.tobytes() == files[1][0].read_bytes()


def test_rows_of_a_trial_outlive_the_store_object(tmp_path):
    store = make_store(tmp_path / "s", [5, 6])
    rows = store.trial_rows(1)
    del store
    gc.collect()
    assert rows[0].tolist() == [10_000.0, 10_000.0625, 10_000.125]


def test_the_map_is_released_with_its_last_array(tmp_path):
    found = FileRange(write_files(tmp_path, [5000, 5000]))
    view = found.bytes[:10]
    del found, view
    gc.collect()
    assert maps_below(tmp_path) == []


def test_reading_trials_again_and_again_holds_no_more_maps(tmp_path):
    """The kernel allows 65,530 maps per process: one leaked per trial ends a long run."""
    store = make_store(tmp_path / "s", [5, 6])
    for _ in range(20):
        store.trial_rows(1)
    gc.collect()
    assert len(maps_below(tmp_path / "s" / "shards")) <= 1


def test_a_thread_that_still_reads_when_the_program_ends_does_not_crash_it(tmp_path):
    (path, size) = write_files(tmp_path, [8_000_000])[0]
    code = """if True:
        import sys, threading, time
        from pathlib import Path
        from shards.maps import FileRange
        found = FileRange([(Path(sys.argv[1]), int(sys.argv[2]))])
        def read():
            while True:
                found.bytes.sum()
        threading.Thread(target=read, daemon=True).start()
        time.sleep(0.05)
    """
    command = [sys.executable, "-c", code, path, str(size)]
    assert [subprocess.run(command, capture_output=True).returncode for _ in range(3)] == [0] * 3


def test_a_map_survives_the_removal_of_its_file(tmp_path):
    files = write_files(tmp_path, [5000])
    content = files[0][0].read_bytes()
    found = FileRange(files)
    files[0][0].unlink()
    assert found.bytes[:5000].tobytes() == content
