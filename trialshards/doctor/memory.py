"""Checks of memory and limits of the system."""

from __future__ import annotations

from pathlib import Path

from trialshards.doctor.check import Check, not_checked, verdict
from trialshards.doctor.machine import Machine
from trialshards.doctor.pages import DiskSpeed, Residency
from trialshards.sizes import show_bytes

LEAST_FILES = 1024
"""The usual limit of Linux. A worker sends each tensor of a batch as an open file."""
LEAST_SHM_BYTES = 256 * 2**20
"""Where it is not known what a batch takes; containers often have 64 MiB."""
PREFETCH = 2
"""Batches that a DataLoader asks each worker for ahead, by default."""
WARM_SHARE = 0.9


def check_shm(machine: Machine, *, batch_bytes: int | None, n_workers: int) -> Check:
    """Look whether the batches of DataLoader workers have room in /dev/shm."""
    if machine.shm_bytes is None:
        return not_checked("shared memory", "there is no /dev/shm")
    has = f"{show_bytes(machine.shm_bytes)} free in /dev/shm"
    needed = LEAST_SHM_BYTES
    if batch_bytes is not None and n_workers:
        # One that is being filled and one that is being used, beside those that wait.
        needed = batch_bytes * n_workers * (PREFETCH + 2)
        has += f"; {n_workers} workers hold up to {show_bytes(needed)} of batches there"
    if machine.shm_bytes >= needed:
        return verdict("shared memory", has, "")
    return verdict(
        "shared memory",
        has,
        f"give the container {show_bytes(max(needed, LEAST_SHM_BYTES))} (docker run --shm-size), "
        "or use num_workers=0: workers that find no room there die by SIGBUS",
    )


def check_open_files(machine: Machine) -> Check:
    """Look whether workers may send their batches: the maps of a store need no open files."""
    seen = f"up to {machine.most_files:,} open files"
    if machine.most_files >= LEAST_FILES:
        return verdict("open files", seen, "")
    return verdict(
        "open files",
        seen,
        f"ulimit -n {LEAST_FILES * 4}: a DataLoader worker sends each tensor of a batch as an "
        "open file",
    )


def check_huge_pages(machine: Machine) -> Check:
    """Look whether programs may ask for large pages."""
    if machine.huge_pages is None:
        return not_checked("huge pages", "the system has no such setting")
    seen = f"transparent huge pages: {machine.huge_pages}"
    if machine.huge_pages != "never":
        return verdict("huge pages", seen, "")
    return verdict(
        "huge pages",
        seen,
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root, on the host): "
        "else batches lie in pages of 4 KiB alone",
    )


def check_room(machine: Machine, *, split_bytes: int, shuffle: str) -> Check:
    """Compare what is read with the memory that can keep it."""
    if machine.memory_bytes is None:
        return not_checked("memory", "the system does not tell what is free")
    seen = (
        f"the split is {show_bytes(split_bytes)}; {show_bytes(machine.memory_bytes)} of memory are "
        "available"
    )
    if split_bytes <= machine.memory_bytes or shuffle != "global":
        return verdict("memory", f"{seen}; shuffle is {shuffle}", "")
    return verdict(
        "memory",
        seen,
        "shuffle='blocks' (doctor --shuffle blocks): it reads the store in large pieces, a pool "
        "of them at a time; or a machine with more memory",
    )


def check_cache(found: Residency | None, speed: DiskSpeed | None, files: list[Path]) -> Check:
    """Look how much of the shards is in memory: the first epoch waits for the rest.

    Args:
        found: What `residency` said of the shards.
        speed: Of the disk.
        files: Data files of the shards.
    """
    if found is None:
        return not_checked("page cache", "of files of others the system does not tell it")
    seen = f"{found.share:.0%} of {show_bytes(found.n_bytes)} are in memory"
    if found.share >= WARM_SHARE:
        return verdict("page cache", seen, "")
    if speed is not None:
        cold = found.n_bytes - found.resident_bytes
        seen += (
            f"; the rest takes {cold / speed.in_order:,.1f} s read in order, "
            f"{cold / speed.at_random:,.1f} s at random"
        )
    return verdict(
        "page cache",
        seen,
        f"before the first epoch: cat {_pattern(files)} > /dev/null",
    )


def _pattern(files: list[Path]) -> str:
    """Return a shell pattern of the files: one per array of a shard, or of the local cache."""
    if files[0].suffix == ".raw":
        return str(files[0].parent.parent / "*/*.raw")
    return str(files[0].parents[4] / "*/*/c/0/0")


def check_disk(speed: DiskSpeed | None, *, needed: float | None, is_cold: bool, what: str) -> Check:
    """Compare random reads with what the loop takes.

    Args:
        speed: Of the disk.
        needed: Bytes per second that the loop takes from the disk; None if that is not known.
        is_cold: Whether anything has to come from the disk at all.
        what: Whose need it is.
    """
    if speed is None:
        return not_checked("disk", "the system keeps the shards in memory, or does not tell")
    seen = f"{speed.in_order / 1e6:,.0f} MB/s in order, {speed.at_random / 1e6:,.0f} at random"
    if needed is None:
        return verdict("disk", seen, "")
    seen += f"; {what} takes {needed / 1e6:,.0f}"
    if not is_cold:
        return verdict("disk", f"{seen}, all of it from memory", "")
    if speed.at_random >= needed:
        return verdict("disk", seen, "")
    return verdict(
        "disk",
        seen,
        "copy the store to a local SSD, read it in order before the first epoch if it fits into "
        "memory, else use shuffle='blocks'",
    )
