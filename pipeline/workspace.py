"""One data set under construction, and the steps of its build, each repeatable alone.

The command runs them in a row; an orchestrator runs them one by one, bucket by bucket, and on
any day: what a step needs from an earlier one lies in the store's `staging/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.buckets import OnFiles, build_bucket, plan_digest
from pipeline.catalog import Catalog, scan_files
from pipeline.ledger import (
    CatalogNotFoundError,
    Changes,
    compare_catalogs,
    load_catalog,
    save_catalog,
)
from pipeline.recipe import Recipe
from pipeline.spec import DatasetSpec, load_spec
from pipeline.staging import BucketResult, read_staged
from pipeline.trials import SourceFile
from shards.errors import CorruptStoreError, TrialShardsError

log = logging.getLogger(__name__)


class BucketsMissingError(TrialShardsError, RuntimeError):
    """Some buckets are not built, or not from the files that the catalog lists."""


@dataclass(frozen=True)
class Workspace:
    """Where a data set is built.

    Attributes:
        root: Folder of `dataset.yaml`; globs and tables are below it.
        recipe: The specification, checked.
        store: Store root.
    """

    root: Path
    recipe: Recipe
    store: Path

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
        spec = load_spec(spec_path)
        if auto_buckets is not None and spec.shards.buckets == "auto":
            shards = spec.shards.model_copy(update={"buckets": auto_buckets})
            spec = spec.model_copy(update={"shards": shards})
        root = Path(spec_path).parent
        return cls(root, Recipe(spec, root).check(), Path(store))

    @property
    def spec(self) -> DatasetSpec:
        """The specification."""
        return self.recipe.spec

    @cached_property
    def ledger(self) -> Path:
        """Where the catalog lies between steps; one of other files is another catalog."""
        named = self.spec.model_dump(mode="json", include={"source", "attributes"})
        del named["source"]["obtain"]
        text = json.dumps([named, self.spec.shards.buckets], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.store / "staging" / f"catalog-{digest}.parquet"

    @cached_property
    def committed(self) -> Path:
        """Where the catalog of the last commit lies."""
        return self.store / "staging" / "committed.parquet"

    def staging(self, n_buckets: int) -> Path:
        """Return the folder of staged buckets."""
        return self.store / "staging" / plan_digest(self.recipe, n_buckets)

    def staged_path(self, catalog: Catalog, bucket: int) -> Path:
        """Return where a bucket of a catalog is kept until the commit."""
        return self.staging(catalog.n_buckets) / f"{bucket}.arrow"

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

    def changes(self, now: Catalog) -> Changes:
        """Return how files differ from those of the last commit."""
        return compare_catalogs(self.committed_catalog(), now)

    def committed_catalog(self) -> Catalog | None:
        """Return the catalog of the last commit; None without one, or if it is damaged."""
        try:
            return load_catalog(self.committed, self.root)
        except CatalogNotFoundError:
            return None
        except CorruptStoreError as error:  # the next commit writes it anew
            log.warning("all files count as new: %s", error)
            return None

    def build_bucket(
        self,
        catalog: Catalog,
        bucket: int,
        *,
        on_files: OnFiles = lambda *_: None,
        n_workers: int | None = None,
    ) -> BucketResult:
        """Build one bucket of a catalog and stage it, unless it is staged already."""
        return build_bucket(
            self.root,
            files_of(catalog, bucket),
            self.recipe,
            self.store,
            staged=self.staged_path(catalog, bucket),
            on_files=on_files,
            n_workers=n_workers,
        )

    def staged_buckets(self, catalog: Catalog) -> list[BucketResult]:
        """Return all buckets of a catalog as they were staged.

        Raises:
            BucketsMissingError: If one is missing or holds other files; it names them.
        """
        results, missing, stale = [], [], []
        for bucket in range(catalog.n_buckets):
            staged = read_staged(self.staged_path(catalog, bucket), self.store)
            if staged is None:
                missing.append(bucket)
            elif staged.covers(files_of(catalog, bucket)):
                results.append(staged.result)
            else:
                stale.append(bucket)
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
