"""Write a trained model as one file that other programs run: `torch.export`, or ONNX.

Either takes raw units and says physical ones, for any number of rows and steps, and carries a JSON
text of what every input and output is.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from shards import InvalidSpecError, Store
from shards.disk import replace_file
from shards.errors import ResumeError
from training.build import build_model
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.signature import BATCH, LENGTH, Port, describe
from training.standalone import Standalone
from training.target import Objective

Format = Literal["torch", "onnx"]
KEY = "trialshards.json"
"""Where the description is: an extra file of a `torch.export`, a metadata property of an ONNX."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        format: `torch` or `onnx`.
        description: What the file says of itself.
    """

    path: Path
    format: Format
    description: dict[str, Any]


def export_model(
    checkpoint: Path,
    out: Path,
    to: Format,
    *,
    store: Path | None = None,
    state: bool | None = None,
) -> Exported:
    """Write the model of a checkpoint with everything that it needs.

    Args:
        checkpoint: Such as `best.ckpt` of a run.
        out: File to write; one that is there is replaced.
        to: Which format.
        store: Where the run's store is now; by default where it was.
        state: Whether to take and return the hidden state, for calls that go on where the last
            one ended; by default as the model was trained, in lanes or not.

    Raises:
        CheckpointNotFoundError: If there is no checkpoint.
        StoreNotFoundError: If the store, or the version that the run learned from, is gone.
        ResumeError: If the store holds other data than the run learned from.
        InvalidSpecError: If the model cannot do what is asked for, or a package is missing.
    """
    if to == "onnx":
        _require("onnx", "onnxscript")
    model, description = open_standalone(checkpoint, store=store, state=state)
    text = json.dumps(description, indent=1)
    program = trace(model, description)
    content = _as_onnx(program, description, text) if to == "onnx" else _as_torch(program, text)
    replace_file(out, content)
    return Exported(out, to, description)


def open_standalone(
    checkpoint: Path, *, store: Path | None = None, state: bool | None = None
) -> tuple[Standalone, dict[str, Any]]:
    """Return the model of a checkpoint from raw units to physical ones, and what it says of itself.

    Args and errors are those of `export_model`.
    """
    saved = load_checkpoint(checkpoint)
    config = TrainConfig(**saved["run"]["config"])
    opened = _open_store(saved["run"], store or config.store, checkpoint)
    state = config.data.batches == "lanes" if state is None else state
    if state and config.model.bidirectional:
        raise InvalidSpecError(
            "a bidirectional model reads a row to its end before it answers: it has no state to go "
            "on from. Export it without."
        )
    objective = Objective(**saved["run"]["objective"])
    network = build_model(opened, config, objective)
    network.load_state_dict(saved["model"])
    model = Standalone(network, opened, objective).eval().requires_grad_(False)
    return model, describe(model, opened, config, saved, state=state)


def trace(model: Standalone, description: Mapping[str, Any]) -> ExportedProgram:
    """Return the graph of a model, for any number of rows and steps.

    Its LSTMs are one operator each, `trialshards::lstm`. PyTorch's own (2.13) is unrolled while it
    is traced, step by step, which fixes their number.
    """
    traced = copy.deepcopy(model)
    network = traced.network
    network.layers = _whole(network.layers)
    if network.backwards is not None:
        network.backwards = _whole(network.backwards)
    ports = [Port.parse(port) for port in description["inputs"]]
    dims = {name: Dim(name) for name in (BATCH, LENGTH)}
    shapes = {p.name: {axis: dims[name] for axis, name in p.dynamic.items()} for p in ports}
    examples = {port.name: port.example() for port in ports}
    with torch.no_grad():
        return torch.export.export(traced, (), examples, dynamic_shapes=shapes, strict=False)


def _as_torch(program: ExportedProgram, text: str) -> bytes:
    """Return a file for `torch.export.load`, which needs nothing of ours."""
    for node in program.graph.nodes:
        if node.target is _lstm_operator():
            node.target = torch.ops.aten.lstm.input
    program.graph_module.recompile()
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: text})
    return file.getvalue()


def _as_onnx(program: ExportedProgram, description: Mapping[str, Any], text: str) -> bytes:
    """Return a file for any runtime that knows opset 20."""
    from onnx_ir import Shape
    from onnxscript.function_libs.torch_lib.ops.core import aten_lstm

    with _quiet("torch.onnx"):
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[port["name"] for port in description["inputs"]],
            output_names=[port["name"] for port in description["outputs"]],
            custom_translation_table={_lstm_operator(): aten_lstm},
        )
    assert written is not None
    graph = written.model.graph
    for values, ports in ((graph.inputs, "inputs"), (graph.outputs, "outputs")):
        for value, port in zip(values, description[ports], strict=True):
            value.shape = Shape(port["shape"])  # by the names of the description, not s11
    written.model.metadata_props[KEY] = text
    content: bytes = written.model_proto.SerializeToString()
    return content


def _open_store(run: dict[str, Any], path: Path, checkpoint: Path) -> Store:
    """Open the version that a run learned from."""
    store = Store(path, run["store_version"])
    known = store.manifest.fingerprints
    wrong = [
        split
        for split, fingerprint in run["fingerprints"].items()
        if not split.startswith("store ") and known.get(split) != fingerprint
    ]
    if wrong:
        raise ResumeError(
            f"{checkpoint} was trained on other data than {store.path} ({store.version}) holds in "
            f"split {', '.join(wrong)}. Name the store that it was trained on."
        )
    return store


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidSpecError(
            f"{' and '.join(missing)} not installed; wanted for ONNX. "
            "Run: pip install 'trialshards[onnx]'"
        )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library from warning of packages that it could also use."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class _WholeLSTM(nn.Module):
    """One layer and direction of an LSTM as one operator."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(
        self, x_BLX: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        zero_1BH = x_BLX.new_zeros(1, x_BLX.shape[0], self.lstm.hidden_size)
        before = [zero_1BH, zero_1BH] if state is None else list(state)
        weights = [parameter for _, parameter in self.lstm.named_parameters()]
        out_BLH, h, c = _lstm_operator()(
            x_BLX,
            before,
            weights,
            True,
            1,
            0.0,
            False,
            False,
            True,
        )
        return out_BLH, (h, c)


def _whole(layers: nn.ModuleList) -> nn.ModuleList:
    return nn.ModuleList(_WholeLSTM(layer) for layer in layers if isinstance(layer, nn.LSTM))


@functools.cache
def _lstm_operator() -> Any:
    """Return `aten::lstm.input` under a name of ours, with sizes that a trace may leave open."""

    @torch.library.custom_op(
        "trialshards::lstm",
        mutates_args=(),
        schema="(Tensor x, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, "
        "float dropout, bool train, bool bidirectional, bool batch_first) "
        "-> (Tensor, Tensor, Tensor)",
    )
    def lstm(*inputs: Any) -> Any:
        return torch.ops.aten.lstm.input(*inputs)

    @lstm.register_fake
    def _(x: Tensor, hx: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        out = x.new_empty(x.shape[0], x.shape[1], hx[0].shape[2])
        return out, torch.empty_like(hx[0]), torch.empty_like(hx[1])

    return torch.ops.trialshards.lstm.default
