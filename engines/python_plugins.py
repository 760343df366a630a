"""The mask cache plugins as Python IPluginV3 classes over the C launchers.

For installations whose plugin library has no C++ TensorRT adapters. Building ahead of time asks a
plugin for shapes and types only, so plans can be built without the library; running one needs it.
Operators, shapes and rounding: docs/plugins.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveedit.errors import BackendError
from liveedit.runtime.kernels import (
    DTYPE_CODES,
    KERNEL_LIBRARY,
    check_launch,
    library_path,
    load_kernels,
)

NAMESPACE = "liveedit"
VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One plugin's signature. Inputs that are neither modulation nor index have the real type."""

    name: str
    launcher: str
    num_inputs: int
    num_outputs: int
    modulation: tuple[int, ...]  # float32 inputs [1, 1, D]
    index: int  # the int32 input
    alias: tuple[int, int] | None = None  # output written in the buffer of an input


GATHER = Operator(
    name="MaskCacheGather",
    launcher="liveedit_mask_cache_gather",
    num_inputs=4,  # x, scale, shift, keep_index
    num_outputs=1,
    modulation=(1, 2),
    index=3,
)
SCATTER = Operator(
    name="MaskCacheScatter",
    launcher="liveedit_mask_cache_scatter",
    num_inputs=5,  # x, update, store, gate, token_row
    num_outputs=2,
    modulation=(3,),
    index=4,
    alias=(1, 2),
)
OPERATORS = (GATHER, SCATTER)

# The registry keeps no Python reference of its own to what it was given.
_alive: list[Any] = []


def register(trt: Any, library: Path | None = None) -> None:
    """Register both plugins with the registry of a TensorRT flavour, once per process.

    Does nothing for a plugin that is registered already, for example by the C++ library.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        library: absolute path of the kernel library, or None for this installation's. Without one
            plans can be built ahead of time, but not run.

    Raises:
        BackendError: the library cannot be loaded, or the registry refused a creator.
    """
    library = library or library_path(KERNEL_LIBRARY)
    kernels = None if library is None else load_kernels(library)
    registry = trt.get_plugin_registry()
    for operator in OPERATORS:
        if registry.get_creator(operator.name, VERSION, NAMESPACE) is not None:
            continue
        creator = _creator(trt, operator, kernels)
        if not registry.register_creator(creator, NAMESPACE):
            raise BackendError(f"{trt.__name__} refused to register plugin {operator.name}")
        _alive.append(creator)


def launch(
    operator: Operator,
    kernels: ctypes.CDLL,
    shapes: Sequence[Sequence[int]],
    dtype: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    stream: int,
) -> None:
    """Queue one operator on ``stream``. Shapes are those of the inputs; tensors are addresses.

    Raises:
        BackendError: the launch failed.
    """
    _, tokens, width = shapes[0]
    kept = shapes[3][0] if operator is GATHER else shapes[1][1]
    function = getattr(kernels, operator.launcher)
    status = function(*inputs, *outputs, tokens, kept, width, DTYPE_CODES[dtype], stream)
    check_launch(status, operator.name)


def check_shapes(operator: Operator, shapes: Sequence[Sequence[int]]) -> None:
    """Refuse input shapes that do not agree with each other.

    Raises:
        BackendError: naming the operator and every shape.
    """
    got = [tuple(s) for s in shapes]
    tokens, width = got[0][1:] if len(got[0]) == 3 else (-1, -1)
    if operator is GATHER:
        want = [(1, tokens, width), (1, 1, width), (1, 1, width), (got[3][0],)]
    else:
        kept = got[1][1] if len(got[1]) == 3 else -1
        rows = (1, tokens, width)
        want = [rows, (1, kept, width), rows, (1, 1, width), (tokens,)]
    if got != want:
        raise BackendError(
            f"plugin {operator.name} got input shapes {got}, where {want} fit its first input. "
            "Export the bundle again."
        )


def _dtype_names(trt: Any) -> dict[Any, str]:
    return {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "bfloat16",
    }


def _plugin(trt: Any, operator: Operator, kernels: ctypes.CDLL | None) -> Any:
    names = _dtype_names(trt)

    bases: Any = (
        trt.IPluginV3,
        trt.IPluginV3OneCore,
        trt.IPluginV3OneBuildV2,
        trt.IPluginV3OneRuntime,
    )

    class Plugin(*bases):  # type: ignore[misc]  # the bases are known only when trt is
        def __init__(self) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin_name = operator.name
            self.plugin_version = VERSION
            self.plugin_namespace = NAMESPACE
            self.num_outputs = operator.num_outputs

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin()

        def attach_to_context(self, context: Any) -> Any:
            return Plugin()

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([])

        def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
            return [inputs[0]] * operator.num_outputs

        def get_output_shapes(
            self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
        ) -> list[Any]:
            first = trt.DimsExprs(inputs[0])
            if operator is SCATTER:
                return [first, trt.DimsExprs(inputs[2])]
            first[1] = inputs[3][0]
            return [first]

        def supports_format_combination(
            self, position: int, tensors: Sequence[Any], num_inputs: int
        ) -> bool:
            tensor = tensors[position].desc
            if tensor.format != trt.TensorFormat.LINEAR:
                return False
            if position == operator.index:
                return bool(tensor.type == trt.DataType.INT32)
            if position in operator.modulation:
                return bool(tensor.type == trt.DataType.FLOAT)
            return tensor.type in names and bool(tensor.type == tensors[0].desc.type)

        def get_aliased_input(self, output: int) -> int:
            return operator.alias[1] if operator.alias and operator.alias[0] == output else -1

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            check_shapes(operator, [i.dims for i in inputs])

        def enqueue(
            self,
            input_descs: Sequence[Any],
            output_descs: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if kernels is None:
                raise BackendError(
                    f"plugin {operator.name} cannot run: this installation has no kernel library. "
                    "Install liveedit-trt again where nvcc is found."
                )
            shapes = [d.dims for d in input_descs]
            dtype = names[input_descs[0].type]
            launch(operator, kernels, shapes, dtype, inputs, outputs, stream)

    return Plugin()


def _creator(trt: Any, operator: Operator, kernels: ctypes.CDLL | None) -> Any:
    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = operator.name
            self.plugin_version = VERSION
            self.plugin_namespace = NAMESPACE
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return _plugin(trt, operator, kernels)

    return Creator()
