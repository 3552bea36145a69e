"""What the machine, or the container this process lives in, has to give."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 2**60
"""Groups without a memory limit say some number near 2^63."""


@dataclass(frozen=True)
class Machine:
    """Facts of a machine; None where the system does not tell.

    Attributes:
        n_cpus: Processors, as `os.cpu_count` counts them: what programs size their pools by.
        n_cores: Those that this process may use, by its affinity.
        quota: Processors' worth of time that its control groups grant; None without a limit.
        memory_bytes: What may still be used: free memory and caches that can be dropped, or what
            its control groups leave.
        shm_bytes: What is free in /dev/shm.
        most_files: Soft limit of open files.
        huge_pages: `always`, `madvise` or `never`.
        omp_threads: `OMP_NUM_THREADS`, or None.
        n_local_processes: Training processes on this machine, as their launcher says.
    """

    n_cpus: int
    n_cores: int
    quota: float | None
    memory_bytes: int | None
    shm_bytes: int | None
    most_files: int
    huge_pages: str | None
    omp_threads: str | None
    n_local_processes: int | None

    @property
    def usable_cores(self) -> float:
        """Processors' worth of time that this process can get."""
        return min(self.n_cores, self.quota or self.n_cores)


def read_machine(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Machine:
    """Return the facts of this machine.

    Args:
        root: Where `proc`, `sys` and `dev` are.
        environ: Environment, by default that of this process.
    """
    environ = os.environ if environ is None else environ
    n_cpus = os.cpu_count() or 1
    return Machine(
        n_cpus=n_cpus,
        n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_cpus,
        quota=_quota(root),
        memory_bytes=_memory(root),
        shm_bytes=_free_bytes(root / "dev/shm"),
        most_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        huge_pages=_huge_pages(root),
        omp_threads=environ.get("OMP_NUM_THREADS"),
        n_local_processes=_n_processes(environ),
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _groups(root: Path, controller: str) -> list[Path]:
    """Return the folders of the control groups of this process, from its own to the topmost.

    Version 2 has one tree for all controllers, version 1 one for each. In a container, the path
    that /proc tells may be that of the host; then the topmost folder is the container's own.
    """
    found = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        top = root / "sys/fs/cgroup"
        if names:
            if controller not in names.split(","):
                continue
            top = next((top / n for n in (names, controller) if (top / n).exists()), top)
        elif (top / "unified").exists():
            top = top / "unified"
        inner = [part for part in path.split("/") if part and part != ".."]
        found += [top.joinpath(*inner[:n]) for n in range(len(inner), -1, -1)]
    return found


def _quota(root: Path) -> float | None:
    """Return the smallest CPU quota of the groups, in processors."""
    quotas = []
    for group in _groups(root, "cpu"):
        said = (_read(group / "cpu.max") or "").split()
        if not said:
            parts = [_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            said = [(part or "").strip() for part in parts]
        if len(said) == 2 and all(part.isdecimal() for part in said) and int(said[1]):
            quotas.append(int(said[0]) / int(said[1]))
    return min(quotas, default=None)


def _memory(root: Path) -> int | None:
    """Return the bytes that are left, of the machine or of a group with a limit."""
    left = []
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            left.append(int(value.split()[0]) * 1024)
    for group in _groups(root, "memory"):
        for limit_name in ("memory.max", "memory.limit_in_bytes"):
            limit = (_read(group / limit_name) or "").strip()
            if limit.isdecimal() and int(limit) < _NO_LIMIT:
                left.append(max(0, int(limit) - _held(group)))
    return min(left, default=None)


def _held(group: Path) -> int:
    """Return the bytes that a group cannot give back: those of no file."""
    for line in (_read(group / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("anon", "total_rss"):
            return int(value)
    return 0


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _huge_pages(root: Path) -> str | None:
    """Return the word in brackets of `always [madvise] never`."""
    said = _read(root / "sys/kernel/mm/transparent_hugepage/enabled") or ""
    return said.partition("[")[2].partition("]")[0] or None


def _n_processes(environ: Mapping[str, str]) -> int | None:
    """Return the processes per machine that torchrun, Open MPI or Slurm started, if it was one."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if (said := environ.get(name, "")).isdecimal():
            return int(said)
    return None
