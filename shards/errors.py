"""Errors grouped by what a caller can do about them; each is also a builtin.

A message names the thing, shows got and wanted, and ends with the next step.
"""


class TrialShardsError(Exception):
    """Base of every error raised on purpose by this project."""


class InvalidSpecError(TrialShardsError, ValueError):
    """What the user wrote is wrong: mend the file or the argument and try again."""


class StoreNotFoundError(TrialShardsError, FileNotFoundError):
    """No store, or no committed version of it, at that place: build it or mend the path."""


class TrialNotFoundError(TrialShardsError, KeyError):
    """No trial of that id in the version."""

    def __str__(self) -> str:
        """Return the message itself (KeyError would quote it)."""
        return str(self.args[0]) if self.args else ""


class CorruptStoreError(TrialShardsError, OSError):
    """Bytes on disk are not what the manifest promises: verify, restore or rebuild."""


class FormatVersionError(TrialShardsError, ValueError):
    """The store was written by a newer format: upgrade trialshards."""


class StoreWriteError(TrialShardsError, OSError):
    """The disk is full, read-only or broken: mend that and run the same again."""


class CommitConflictError(TrialShardsError, RuntimeError):
    """Another build committed first: run the build again on top of it."""


class StoreBusyError(TrialShardsError, RuntimeError):
    """Somebody is at work in the store, or nobody can tell: try again when they are done."""


class TooManyQuarantinedError(TrialShardsError, RuntimeError):
    """More files were refused than the specification allows; nothing was published."""


class ResumeError(TrialShardsError, ValueError):
    """A saved state belongs to other data, another order or another configuration."""
