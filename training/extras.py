"""Inputs beside the channels: codes of texts, and what is known of the trial as a whole.

Code 0 (missing, padded, or unknown to the train trials) adds nothing: no indicator is 1, and its
embedding is a row of zeros that is never trained. A column or row of its own would keep its random
start wherever the train trials miss nothing, and add that noise to every unknown word of a test
trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards import Store
from shards.codes import fitted_inputs

EMBEDDING_LIMIT = 50


@dataclass(frozen=True)
class ExtraInputs:
    """Sizes of what `Batch` holds beside the channels.

    Attributes:
        codes: Encoding (`one_hot`, `embed`) and number of words of each column of `codes`.
        n_statics: Columns of `statics`.
        static_words: Number of words of each column of `static_codes`.
    """

    codes: tuple[tuple[str, int], ...] = ()
    n_statics: int = 0
    static_words: tuple[int, ...] = ()


NO_EXTRAS = ExtraInputs()


def extra_inputs(store: Store) -> ExtraInputs:
    """Return the sizes of a store's extra inputs.

    Raises:
        CorruptStoreError: If `fit.json` does not hold what the manifest announces.
    """
    codes, statics = fitted_inputs(store)
    return ExtraInputs(
        codes=tuple((entry.encoding, len(entry.vocabulary)) for entry in codes),
        n_statics=sum(entry.width for entry in statics),
        static_words=tuple(len(e.vocabulary) for e in statics if e.encoding == "embed"),
    )


class Extras(nn.Module):
    """Turns codes and statics into columns of the network's input.

    Without any it has no parameter and draws no random number.

    Attributes:
        width: Columns at every step.
        head_width: Columns beside what the head sees.

    Args:
        inputs: What there is.
        embedding_dim: Columns per embedded input; None for `embedding_columns` of its words.
        at_head: Static inputs enter once, at the head, instead of at every step.
    """

    def __init__(
        self, inputs: ExtraInputs, embedding_dim: int | None = None, *, at_head: bool = False
    ) -> None:
        super().__init__()
        self.inputs, self.at_head = inputs, at_head
        embedded = [n for encoding, n in inputs.codes if encoding == "embed"]
        self.tables = _tables(embedded, embedding_dim)
        self.static_tables = _tables(inputs.static_words, embedding_dim)
        dense = sum(n for encoding, n in inputs.codes if encoding == "one_hot")
        n_steps = dense + _columns(self.tables)
        n_static = inputs.n_statics + _columns(self.static_tables)
        self.width = n_steps + (0 if at_head else n_static)
        self.head_width = n_static if at_head else 0

    def forward(
        self,
        values_BLC: Tensor,
        codes_BLN: Tensor | None,
        statics_BS: Tensor | None,
        static_codes_BE: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return parts `[B, L, *]` of the steps and `[B, *]` of the head.

        In the type of the values: codes, statics, embedded statics.
        """
        parts = [] if codes_BLN is None else self._codes(codes_BLN)
        per_trial = [] if statics_BS is None else [statics_BS]
        if static_codes_BE is not None:
            columns = zip(self.static_tables, static_codes_BE.unbind(-1), strict=True)
            per_trial += [table(code_B) for table, code_B in columns]
        per_trial = [part.to(values_BLC.dtype) for part in per_trial]
        if not self.at_head:
            n_steps = values_BLC.shape[1]
            parts += [part[:, None].expand(-1, n_steps, -1) for part in per_trial]
        parts = [part.to(values_BLC.dtype) for part in parts]
        return parts, (per_trial if self.at_head else [])

    def _codes(self, codes_BLN: Tensor) -> list[Tensor]:
        tables, parts = iter(self.tables), []
        for (encoding, n_words), code_BL in zip(
            self.inputs.codes, codes_BLN.unbind(-1), strict=True
        ):
            if encoding == "embed":
                parts.append(next(tables)(code_BL))
            else:
                words = torch.arange(1, n_words + 1, device=code_BL.device)
                parts.append(code_BL[..., None] == words)
        return parts


def _tables(n_words: list[int] | tuple[int, ...], dim: int | None) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Embedding(n + 1, dim or embedding_columns(n), padding_idx=0) for n in n_words
    )


def _columns(tables: nn.ModuleList) -> int:
    return sum(table.embedding_dim for table in tables if isinstance(table, nn.Embedding))


def embedding_columns(n_words: int) -> int:
    """Return the default width of a table: fastai's rule of thumb, between 1 and 50."""
    return max(1, min(EMBEDDING_LIMIT, round(1.6 * math.pow(n_words, 0.56))))
