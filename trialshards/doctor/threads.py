"""Checks of processors: more threads than cores make each of them wait for the others."""

from __future__ import annotations

import math

from trialshards.doctor.check import Check, not_checked, verdict
from trialshards.doctor.machine import Machine


def check_threads(
    machine: Machine, *, torch_threads: int | None, n_workers: int, n_processes: int
) -> Check:
    """Compare all threads that compute with the cores there are.

    Args:
        machine: Its facts.
        torch_threads: Threads of a process's kernels; None if torch is not there.
        n_workers: DataLoader workers of each process, of one thread each.
        n_processes: Training processes on this machine.
    """
    if torch_threads is None:
        return not_checked("threads", "PyTorch is not installed")
    total, cores = n_processes * (torch_threads + n_workers), machine.usable_cores
    seen = (
        f"{n_processes} processes x ({torch_threads} threads + {n_workers} workers) = {total} "
        f"threads on {cores:g} cores"
    )
    if total <= math.ceil(cores):
        return verdict("threads", seen, "")
    share = max(1, int(cores / n_processes) - n_workers)
    remedy = f"export OMP_NUM_THREADS={share}"
    if n_processes * (share + n_workers) > math.ceil(cores):
        remedy += ", and start fewer workers or processes"
    return verdict("threads", seen, remedy)


def check_omp(machine: Machine, n_processes: int) -> Check:
    """Look whether several training processes would each start a thread per core."""
    if n_processes < 2:
        return verdict("omp", "one training process on this machine", "")
    if machine.omp_threads is not None:
        said = f"{n_processes} processes, OMP_NUM_THREADS={machine.omp_threads}"
        return verdict("omp", said, "")
    share = max(1, int(machine.usable_cores / n_processes))
    return verdict(
        "omp",
        f"{n_processes} processes and OMP_NUM_THREADS is not set: each starts a thread per core",
        f"export OMP_NUM_THREADS={share}",
    )


def check_quota(machine: Machine) -> Check:
    """Compare the processors that programs count with the time that a container gets."""
    if machine.quota is None or machine.quota >= machine.n_cpus:
        return verdict("cpu quota", f"none below the {machine.n_cpus} processors", "")
    allowed = max(1, math.ceil(machine.quota))
    seen = f"{machine.quota:g} of the {machine.n_cpus} processors that programs count"
    said = machine.omp_threads or ""
    if said.isdecimal() and int(said) <= allowed:
        return verdict("cpu quota", f"{seen}; OMP_NUM_THREADS={said}", "")
    return verdict(
        "cpu quota",
        seen,
        f"export OMP_NUM_THREADS={allowed}, else {machine.n_cpus} threads stall each other "
        "whenever the quota is used up; or raise the quota",
    )
