"""Weights of another run to start from: what is taken over, what stays frozen, how fast each moves.

Discriminative rates are those of Howard & Ruder (ACL 2018): what is nearer to the input moves
more slowly.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from torch import Tensor, nn

from shards import InvalidSpecError
from training.checkpoint import load_checkpoint
from training.sections import OptimizerConfig, StartConfig

log = logging.getLogger(__name__)
# What makes an output of the steps' states: another target has its own.
_HEAD = ("pool.", "head.")


def load_start(network: nn.Module, start: StartConfig) -> None:
    """Take over the weights of `start.checkpoint` and freeze what shall stay.

    Raises:
        CheckpointNotFoundError: If there is none.
        InvalidSpecError: If its weights do not fit, or nothing has a name to freeze.
    """
    saved: dict[str, Tensor] = load_checkpoint(start.checkpoint)["model"]
    own = network.state_dict()
    anew = _HEAD if start.new_head else ()
    taken = {name: part for name, part in saved.items() if not name.startswith(anew)}
    wanted = {name: part for name, part in own.items() if not name.startswith(anew)}
    wrong = [
        f"{name} is {_shape(taken.get(name))}, wanted {_shape(wanted.get(name))}"
        for name in sorted(wanted.keys() | taken.keys())
        if _shape(taken.get(name)) != _shape(wanted.get(name))
    ]
    if wrong:
        raise InvalidSpecError(
            f"start.checkpoint {start.checkpoint} does not fit this network: {'; '.join(wrong)}. "
            "Take its model section and a store of the same inputs; for another target set "
            "start.new_head: true."
        )
    network.load_state_dict(own | taken)
    frozen = freeze(network, start.freeze)
    log.info("started from %s, %d parameters frozen", start.checkpoint, frozen)


def _shape(tensor: Tensor | None) -> str:
    return "not there" if tensor is None else str(list(tensor.shape))


def freeze(network: nn.Module, prefixes: tuple[str, ...]) -> int:
    """Freeze parameters by the start of their names; return how many numbers that are.

    Raises:
        InvalidSpecError: If a prefix has no parameter, or none is left to train.
    """
    named = dict(network.named_parameters())
    for prefix in prefixes:
        found = [p for name, p in named.items() if name == prefix or name.startswith(prefix + ".")]
        if not found:
            known = sorted({".".join(name.split(".")[:2]) for name in named})
            raise InvalidSpecError(
                f"start.freeze names {prefix!r}, which has no parameter; wanted the start of one "
                f"of {known}."
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise InvalidSpecError("start.freeze leaves nothing to train; wanted fewer prefixes.")
    return sum(p.numel() for p in named.values() if not p.requires_grad)


def parameter_groups(
    network: nn.Module, config: OptimizerConfig, start: StartConfig | None
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: one, or one per depth with a rate of its own.

    The head moves by `lr`, the last LSTM layer by `layer_decay` x that, and so on downwards; what
    embeds inputs moves with the first layer.
    """
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    if start is None or start.layer_decay == 1:
        return [{"params": list(trained.values()), "lr": config.lr}]
    n_layers = 1 + max(_layer(name) or 0 for name, _ in network.named_parameters())
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        number = _layer(name)
        depth = 0 if number is None else n_layers - number
        groups.setdefault(n_layers if name.startswith("extras.") else depth, []).append(parameter)
    return [
        {"params": groups[depth], "lr": config.lr * start.layer_decay**depth}
        for depth in sorted(groups)
    ]


def _layer(name: str) -> int | None:
    """Return the number of the LSTM layer that a parameter belongs to."""
    found = re.match(r"(?:layers|backwards|norms)\.(\d+)\.", name)
    return int(found[1]) if found else None
