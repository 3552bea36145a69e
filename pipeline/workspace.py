"""One data set under construction, and the steps of its build, each repeatable alone.

The command runs them in a row; an orchestrator runs them one by one, bucket by bucket, and on
any day: what a step needs from an earlier one lies in the store's `staging/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.base import Base, find_base
from pipeline.buckets import OnFiles, build_bucket, plan_digest
from pipeline.catalog import Catalog, scan_files
from pipeline.delta import Delta, compare_with_base, delta_of_look
from pipeline.files import SourceFile
from pipeline.ledger import load_catalog, save_catalog
from pipeline.recipe import Recipe
from pipeline.settled import look_again
from pipeline.spec import DatasetSpec, load_spec
from pipeline.staging import BucketResult, read_staged
from pipeline.versions import digest_of_text
from shards.disk import remove_all
from shards.errors import TrialShardsError


class BucketsMissingError(TrialShardsError, RuntimeError):
    """Some buckets are not built, or not from the files that the catalog lists."""


@dataclass(frozen=True)
class Workspace:
    """Where a data set is built.

    Attributes:
        root: Folder of `dataset.yaml`; globs and tables are below it.
        recipe: The specification, checked.
        store: Store root.
        written: The specification as it was read, with `digest_of_text` of the file.
    """

    root: Path
    recipe: Recipe
    store: Path
    written: tuple[DatasetSpec, str | None] | None = None

    @classmethod
    def open(
        cls, spec_path: str | Path, store: str | Path, *, auto_buckets: int | None = None
    ) -> Workspace:
        """Read and check a specification.

        Args:
            spec_path: `dataset.yaml`.
            store: Store root.
            auto_buckets: What `shards.buckets: auto` stands for; by default it depends on the
                bytes found.

        Raises:
            InvalidSpecError: If it is wrong; the message names the line.
        """
        text = digest_of_text(Path(spec_path))
        spec = load_spec(spec_path)
        same = text == digest_of_text(Path(spec_path))  # else somebody wrote to it meanwhile
        written = (spec, text if same else None)
        if auto_buckets is not None and spec.shards.buckets == "auto":
            shards = spec.shards.model_copy(update={"buckets": auto_buckets})
            spec = spec.model_copy(update={"shards": shards})
        root = Path(spec_path).parent
        return cls(root, Recipe(spec, root).check(), Path(store), written)

    @property
    def spec(self) -> DatasetSpec:
        """The specification."""
        return self.recipe.spec

    @property
    def text(self) -> str | None:
        """Digest of the file that says the specification; None where no file says it as it is."""
        if self.written is None or self.written[0] is not self.spec:
            return None  # made by a change of what was read
        return self.written[1]

    @cached_property
    def ledger(self) -> Path:
        """Where the catalog lies between steps; one of other files is another catalog."""
        named = self.spec.model_dump(mode="json", include={"source", "attributes"})
        del named["source"]["obtain"]
        text = json.dumps([named, self.spec.shards.buckets], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.store / "staging" / f"catalog-{digest}.parquet"

    @cached_property
    def plan(self) -> str:
        """What a trial becomes, as a digest."""
        return plan_digest(self.recipe)

    @property
    def staging_root(self) -> Path:
        """Where builds keep what no version holds yet."""
        return self.store / "staging"

    def staging(self, n_buckets: int) -> Path:
        """Return the folder of staged buckets."""
        return self.staging_root / f"{self.plan}-{n_buckets}"

    def staged_path(self, n_buckets: int, bucket: int) -> Path:
        """Return where a bucket is kept until the commit."""
        return self.staging(n_buckets) / f"{bucket}.arrow"

    def base(self) -> Base | None:
        """Return the newest version as the base of a build, or None."""
        return find_base(self.store, self.plan)

    def scan(self) -> Catalog:
        """Look at the raw files and keep what was found for the next steps.

        Raises:
            InvalidSpecError: If nothing matches, or an attribute table cannot be used.
        """
        catalog = scan_files(self.root, self.spec)
        save_catalog(self.ledger, catalog)
        return catalog

    def catalog(self) -> Catalog:
        """Return what the last scan found.

        Raises:
            CatalogNotFoundError: If there was none.
        """
        return load_catalog(self.ledger, self.root)

    def delta(self, catalog: Catalog, base: Base | None) -> Delta:
        """Return which files of a catalog are to be read."""
        return compare_with_base(catalog, base, self.spec)

    def look(self, base: Base | None) -> Delta | None:
        """Return which files are to be read, or None where only a scan can tell."""
        if base is None or not base.reusable:
            return None
        look = look_again(self.root, self.spec, base)
        return None if look is None else delta_of_look(look, base, self.spec, self.root)

    def build_bucket(
        self,
        delta: Delta,
        bucket: int,
        *,
        on_files: OnFiles = lambda *_: None,
        n_workers: int | None = None,
        afresh: bool = False,
    ) -> BucketResult:
        """Read those files of a bucket that the base does not hold, unless they are staged.

        Args:
            delta: What is to be read.
            bucket: Its number.
            on_files: Progress.
            n_workers: Threads; by default one per processor.
            afresh: Read them in any case, and forget what is staged of them: it may be of other
                content although neither size nor time says so.
        """
        staged = self.staged_path(delta.n_buckets, bucket)
        if afresh:
            remove_all(self._staged_of(delta.files_of(bucket)))
            staged = staged.with_name(f"patch-{staged.name}")
            remove_all([staged])
        return build_bucket(
            self.root,
            delta.files_of(bucket),
            self.recipe,
            self.store,
            staged=staged,
            on_files=on_files,
            n_workers=n_workers,
        )

    def _staged_of(self, files: Sequence[SourceFile]) -> list[Path]:
        """Return the staged buckets that hold some of the files, however many buckets there are."""
        paths = {file.path for file in files}
        found = []
        for staged in sorted(self.staging_root.glob(f"{self.plan}-*/[0-9]*.arrow")):
            bucket = read_staged(staged, self.store)
            if bucket is None or not paths.isdisjoint(file.path for file in bucket.result.files):
                found.append(staged)
        return found

    def staged_buckets(self, delta: Delta) -> list[BucketResult]:
        """Return what was staged of all buckets that have files to read.

        Raises:
            BucketsMissingError: If one is missing or holds other files; it names them.
        """
        results: list[BucketResult] = []
        missing, stale = list[int](), list[int]()
        for bucket in sorted({file.bucket for file in delta.read}):
            staged = read_staged(self.staged_path(delta.n_buckets, bucket), self.store)
            result = None if staged is None else staged.select(delta.files_of(bucket))
            if result is not None:
                results.append(result)
            else:
                (missing if staged is None else stale).append(bucket)
        if missing or stale:
            raise BucketsMissingError(_missing_message(self.spec.name, missing, stale))
        return results


def files_of(catalog: Catalog, bucket: int) -> list[SourceFile]:
    """Return the files of a bucket in path order."""
    if catalog.n_buckets == 1:
        return list(catalog.files)
    return [file for file in catalog.files if file.bucket == bucket]


def bucket_key(bucket: int) -> str:
    """Return the name of a bucket as people see it."""
    return f"b{bucket}"


def bucket_number(key: str) -> int:
    """Undo `bucket_key`."""
    return int(key.removeprefix("b"))


def _missing_message(name: str, missing: Sequence[int], stale: Sequence[int]) -> str:
    parts = [
        f"{', '.join(map(bucket_key, buckets))} {what}"
        for buckets, what in (
            (missing, "not built for this specification"),
            (stale, "built from other files than the catalog lists"),
        )
        if buckets
    ]
    again = ",".join(map(bucket_key, sorted([*missing, *stale])))
    return (
        f"{name}: not ready: {'; '.join(parts)}. Nothing was published. Materialize the partitions "
        f"{again} of trial_shards, then training_set."
    )
