"""Facts of a machine, and the doctor's checks of them: each finding is provoked, and mended."""

import dataclasses
import resource
from pathlib import Path

import pytest

from trialshards.doctor import Question, diagnose
from trialshards.doctor.check import FINDING, FINE, NOT_CHECKED
from trialshards.doctor.machine import read_machine
from trialshards.doctor.memory import check_huge_pages, check_open_files, check_shm
from trialshards.doctor.threads import check_omp, check_quota, check_threads


def system(root: Path, files: dict[str, str]) -> Path:
    """Write files of /proc and /sys below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def machine_of(root: Path, files: dict[str, str], **environ: str):
    return read_machine(system(root, files), environ)


# --- threads ----------------------------------------------------------------------------------


def test_more_threads_than_cores_are_a_finding_until_the_remedy_is_followed(tmp_path):
    machine = dataclasses.replace(machine_of(tmp_path, {}), n_cores=8)
    asked = {"n_workers": 1, "n_processes": 2}
    found = check_threads(machine, torch_threads=8, **asked)
    assert found.state == FINDING
    assert "= 18 threads on 8 cores" in found.seen
    name, _, number = found.remedy.removeprefix("export ").partition("=")
    assert name == "OMP_NUM_THREADS"
    assert check_threads(machine, torch_threads=int(number), **asked).state == FINE
    crowded = check_threads(machine, torch_threads=1, n_workers=8, n_processes=2)
    assert "fewer workers or processes" in crowded.remedy
    assert check_threads(machine, torch_threads=None, **asked).state == NOT_CHECKED


def omp():
    """Return the check of this process's environment."""
    (found,) = (check for check in diagnose(None, Question()) if check.name == "omp")
    return found


def test_several_processes_without_omp_num_threads_are_a_finding(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert omp().state == FINDING
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert omp().state == FINE
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert omp().state == FINE
    assert check_omp(read_machine(environ={}), 2).state == FINDING


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
        # The path of the host, seen from inside a container.
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.25,
        ),
        ({}, None),
    ],
)
def test_a_quota_of_control_groups_is_found(tmp_path, files, quota):
    assert machine_of(tmp_path, files).quota == quota


def test_a_quota_below_the_processors_is_a_finding_until_threads_are_limited(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    found = check_quota(machine_of(tmp_path, files))
    assert found.state == FINDING
    assert found.seen.startswith("0.5 of the ")
    assert "OMP_NUM_THREADS=1" in found.remedy
    assert check_quota(machine_of(tmp_path, files, OMP_NUM_THREADS="1")).state == FINE
    assert machine_of(tmp_path, files).usable_cores == 0.5
    assert check_quota(machine_of(tmp_path / "none", {})).state == FINE


# --- limits ---------------------------------------------------------------------------------


def test_without_dev_shm_nothing_is_said_of_it(tmp_path):
    nowhere = machine_of(tmp_path, {})
    assert check_shm(nowhere, batch_bytes=1, n_workers=1).state == NOT_CHECKED


def test_few_open_files_are_a_finding():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = check_open_files(read_machine())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.seen) == (FINDING, "up to 512 open files")
    enough = dataclasses.replace(read_machine(), most_files=4096)
    assert check_open_files(enough).state == FINE


def test_forbidden_huge_pages_are_a_finding(tmp_path):
    name = "sys/kernel/mm/transparent_hugepage/enabled"
    assert check_huge_pages(machine_of(tmp_path, {name: "always madvise [never]\n"})).remedy
    assert check_huge_pages(machine_of(tmp_path, {name: "[always] madvise never\n"})).state == FINE
    assert check_huge_pages(machine_of(tmp_path / "none", {})).state == NOT_CHECKED


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8 kB\n"}, 8 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 1000 kB\n", "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "5000\n",
                "sys/fs/cgroup/memory.stat": "file 4000\nanon 600\n",
            },
            4400,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 1000 kB\n", "proc/self/cgroup": "3:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
            },
            1000 * 1024,
        ),
        ({}, None),
    ],
)  # fmt: skip
def test_the_memory_that_is_left_is_that_of_the_tightest_group(tmp_path, files, left):
    assert machine_of(tmp_path, files).memory_bytes == left
