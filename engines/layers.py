"""The builder's final layer table: read, classified, summed up.

The text is the library's own, one line for each layer that will run. A subgraph compiled as a
whole gives layers ``..._mylK_I``; all layers of subgraph K belong to one optimisation profile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LayerClass = Literal["gemm", "attention", "conv", "plugin", "kv-update", "reformat", "pointwise"]
TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d, ]*)\]"
    r".*?(?:Datatype|Format/Datatype): (?P<dtype>\w+)"
)
FIELD = re.compile(r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|TacticName|Metadata): ")
SUBGRAPH = re.compile(r"_myl(\d+)(?:_\d+)?\b")
PROFILE = re.compile(r"\[profile (\d+)\]")
ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
PIECES = re.compile(r"[A-Z][a-z0-9]*")
# Names of fused kernels are made of these for operations that only move or convert data.
MOVES = frozenset({"Cast", "Resh", "Tran", "Move", "Copy", "Slic", "Conc", "Repl", "Reformat"})
BARRIERS = frozenset({"signal", "wait"})  # synchronisation between streams


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # the library's name: Half, Float, Int8, Int32

    @property
    def bytes(self) -> int:
        size = {"Half": 2, "BFloat16": 2, "BF16": 2, "Int64": 8, "Int8": 1, "Bool": 1, "FP8": 1}
        count = 1
        for n in self.shape:
            count *= n
        return count * size.get(self.dtype, 4)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the built plan. ``onnx`` names the graph nodes it came from."""

    name: str
    kind: str  # the library's LayerType
    cls: LayerClass
    profile: int
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    onnx: tuple[str, ...]

    @property
    def ops(self) -> tuple[str, ...]:
        """Abbreviated operations in the name of a fused kernel, in order."""
        match = re.match(r"__myl_(\w+?)_myl\d+", self.name)
        return tuple(PIECES.findall(match[1])) if match else ()

    @property
    def dtype(self) -> str:
        """The type it computes in: of the weights if they are FP32 or FP16, else its first input.

        A fused product may list other operands, a residual or a gate, before its own. INT8 weights
        say nothing alone: they may be widened before the product.
        """
        weights = [t for t in self.constants if len(t.shape) > 1 and min(t.shape[-2:]) > 1]
        if weights and self.cls in ("gemm", "conv"):
            largest = max(weights, key=lambda t: t.bytes)
            if largest.dtype not in ("Int8", "FP8"):
                return largest.dtype
        tensors = self.inputs or self.outputs
        return tensors[0].dtype if tensors else "-"


def parse_layers(lines: Iterable[str]) -> list[Layer]:
    """Layers of the table's lines; anything else, and barriers between streams, are left out."""
    raw = []
    for line in lines:
        if not line.startswith("Name: ") or ", LayerType: " not in line:
            continue
        parts = FIELD.split(line)
        fields = dict(zip(parts[1::2], parts[2::2], strict=True))
        if fields["LayerType"] in BARRIERS:
            continue
        raw.append((line, fields))
    subgraph_profile: dict[str, int] = {}
    for line, fields in raw:
        subgraph, stated = SUBGRAPH.search(fields["Name"]), PROFILE.search(line)
        if subgraph and stated:
            subgraph_profile[subgraph[1]] = int(stated[1])
    layers = []
    for line, fields in raw:
        subgraph, stated = SUBGRAPH.search(fields["Name"]), PROFILE.search(line)
        if stated:
            profile = int(stated[1])
        else:
            profile = subgraph_profile.get(subgraph[1], 0) if subgraph else 0
        inputs = _tensors(fields.get("Inputs", ""))
        outputs = _tensors(fields.get("Outputs", ""))
        layers.append(
            Layer(
                name=fields["Name"],
                kind=fields["LayerType"],
                cls=classify(fields["Name"], fields["LayerType"], outputs),
                profile=profile,
                inputs=inputs,
                constants=_tensors(fields.get("Constants", "")),
                outputs=outputs,
                onnx=tuple(dict.fromkeys(ONNX_NODE.findall(fields.get("Metadata", "")))),
            )
        )
    return layers


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(
            name=PROFILE.sub("", m["name"]).strip(),
            shape=tuple(int(n) for n in m["shape"].replace(" ", "").split(",") if n),
            dtype=m["dtype"],
        )
        for m in TENSOR.finditer(text)
    )


def classify(name: str, kind: str, outputs: tuple[LayerTensor, ...] = ()) -> LayerClass:
    """What a layer mainly is, from its name and type."""
    lowered = f"{name} {kind}".lower()
    match = re.match(r"__myl_(\w+?)_myl\d+", name)
    ops = set(PIECES.findall(match[1])) if match else set()
    if kind in ("Reformat", "NoOp", "Cast"):
        return "reformat"
    if "custom" in kind.lower() or "plugin" in kind.lower():
        return "plugin"
    if "mha" in lowered or "attention" in lowered:
        return "attention"
    if kind == "correlation" or "conv" in kind.lower() or "Conv" in ops:
        return "conv"
    if kind.lower() in ("gemm", "matrix_multiply") or ops & {"Fc", "Gemm", "Bmm"}:
        return "gemm"
    if "matmul" in lowered and not ops:
        return "gemm"
    if "Scat" in ops and any(len(t.shape) == 4 and t.dtype != "Int32" for t in outputs):
        return "kv-update"
    if ops and ops <= MOVES:
        return "reformat"
    return "pointwise"


def precision_by_class(layers: Iterable[Layer]) -> dict[str, dict[str, int]]:
    """Number of layers of each compute type, for each class."""
    table: dict[str, Counter[str]] = {}
    for layer in layers:
        table.setdefault(layer.cls, Counter())[layer.dtype] += 1
    return {cls: dict(counts) for cls, counts in sorted(table.items())}


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """``layers.json``: the layers of all profiles and the memory the library reports, in bytes."""

    layers: tuple[Layer, ...]
    weights_bytes: int
    activation_bytes: tuple[int, ...]  # one per profile
    warnings: tuple[str, ...]

    def profile(self, index: int) -> list[Layer]:
        return [layer for layer in self.layers if layer.profile == index]


TOTAL_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
TOTAL_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")


def read_log(messages: Iterable[tuple[int, str]]) -> LayerTable:
    """The table from a builder's log: (severity, message), 2 is a warning."""
    lines: list[str] = []
    warnings: list[str] = []
    weights, activations = 0, []
    for severity, message in messages:
        if severity <= 2:
            warnings.append(message)
        if message.startswith("Layers:"):
            lines += message.split("\n")
        if found := TOTAL_WEIGHTS.search(message):
            weights = max(weights, int(found[1]))
        if found := TOTAL_ACTIVATION.search(message):
            activations.append(int(found[1]))
    return LayerTable(
        layers=tuple(parse_layers(lines)),
        weights_bytes=weights,
        activation_bytes=tuple(activations),
        warnings=tuple(warnings),
    )
