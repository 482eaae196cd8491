"""The formats a graph is written in: how one is written, and run again from its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.graphs.graph import Graph, quiet_compiler
from dsno.support.errors import InputError, one_of

KEY = "dsno"
"""Under which a file says, in JSON, what its graph takes and gives."""
MAX_ONNX = 2**31 - 2**20
"""Bytes of weights that one file of ONNX can hold, with room for the graph."""


Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: a graph to a path, with what the file says of itself.
        read: a file, as a function of inputs by name.
        libraries: that both need besides this package's, of the extra of the format's name.
    """

    write: Callable[[Graph, Path, Mapping[str, Any]], None]
    read: Callable[[Path], Run]
    libraries: tuple[str, ...] = ()


def _write_onnx(graph: Graph, path: Path, about: Mapping[str, Any]) -> None:
    size = sum(t.numel() * t.element_size() for t in graph.program.state_dict.values())
    if size > MAX_ONNX:
        raise InputError(
            f"The weights are {size / 1e9:.1f} GB, and a file of ONNX holds less than 2 GB; use "
            "--to torch-export."
        )
    with quiet_compiler():
        program = torch.onnx.export(
            graph.program,
            dynamo=True,
            verbose=False,
            input_names=graph.inputs,
            output_names=[graph.output],
            dynamic_shapes={name: {0: "batch"} for name in graph.inputs},
        )
    assert program is not None
    program.model.metadata_props[KEY] = json.dumps(about)
    program.save(path)


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)

    return run


def _write_torch(graph: Graph, path: Path, about: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.export.save(graph.program, file, extra_files={KEY: json.dumps(about)})


def _read_torch(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = module(**inputs)
        return output

    return run


FORMATS: Mapping[str, Format] = {
    "onnx": Format(_write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(_write_torch, _read_torch),
}
"""By their names on the command line."""


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        InputError: if there is none, or a library that it needs is missing.
    """
    found = FORMATS[one_of(name, FORMATS, "format")]
    for library in found.libraries:
        if find_spec(library) is None:
            raise InputError(
                f"The format {name} needs {library}; install it with `pip install dsno[{name}]`."
            )
    return found
