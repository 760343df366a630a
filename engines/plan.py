"""What a set of plans depends on, and what came of it: the entries of ``Manifest.plans``.

The key of a set is the hash of its ``BuildInputs``: equal inputs, equal key, nothing to rebuild.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field
from typing import Any, Literal

from liveedit.bundle import GraphSpec, Manifest, TensorSpec, canonical
from liveedit.config import from_dict, to_dict
from liveedit.errors import BundleError, UsageError
from liveedit.runtime.memory_budget import memory_budget

DYNAMIC = "num_keep"  # the one dynamic dimension of any graph


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """The custom operators a plan calls: the C++ library, or the Python classes."""

    kind: Literal["library", "python"]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Builder settings. None leaves the library's default."""

    weight_streaming: bool = False  # weights may stay on the host; rules out CUDA graphs
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    max_aux_streams: int | None = None

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"workspace_bytes must be positive, got {self.workspace_bytes}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level must be in 0 to 5, got {self.optimization_level}")


@dataclass(frozen=True, kw_only=True)
class BuildInputs:
    """Everything a set of plans depends on."""

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    platform: str
    targets: tuple[str, ...]  # compute capabilities: sm89
    precision: str
    onnx: dict[str, str]  # graph and external data files -> sha256
    plugins: PluginLibrary | None
    profiles: tuple[int, ...]  # token counts of the dynamic dimension, one static profile each
    options: BuildOptions = field(default_factory=BuildOptions)

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical(to_dict(self))).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """One plan of a set. Bytes are the library's own totals, activations for the worst profile."""

    plan: str
    layers: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights_bytes: int
    activation_bytes: int
    findings: tuple[str, ...]  # what the gate found: promises of the graph that the plan breaks
    parse_s: float
    build_s: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class PlanSet:
    """The plans of one key."""

    inputs: BuildInputs
    graphs: dict[str, BuiltPlan] = field(default_factory=dict)

    @property
    def weights_bytes(self) -> int:
        return sum(plan.weights_bytes for plan in self.graphs.values())

    @property
    def activation_bytes(self) -> int:
        """Plans that run one after another share the largest block of activations."""
        return max((plan.activation_bytes for plan in self.graphs.values()), default=0)

    def device_bytes(self, manifest: Manifest) -> dict[str, int]:
        """Bytes by purpose that these plans and the runtime's buffers take on the GPU at least."""
        precision = self.inputs.precision
        buffers = memory_budget(manifest, precision) if precision in manifest.graphs else {}
        own = {"weights": self.weights_bytes, "activations": self.activation_bytes}
        return own | {name: count for name, count in buffers.items() if name not in own}


def here() -> str:
    """This operating system and processor, as plans record it: ``linux-x86_64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def read_sets(manifest: Manifest, *, skip_malformed: bool = False) -> dict[str, PlanSet]:
    """The plan sets of a bundle, each key checked against the inputs it stands for.

    Args:
        skip_malformed: leave out entries of another version, for a build that replaces them.

    Raises:
        BundleError: an entry is malformed, or its key is not the hash of its inputs.
    """
    sets = {}
    for key, entry in manifest.plans.items():
        try:
            sets[key] = _read_set(key, entry)
        except BundleError:
            if not skip_malformed:
                raise
    return sets


def _read_set(key: str, entry: dict[str, Any]) -> PlanSet:
    try:
        plans = from_dict(PlanSet, entry, f"plans.{key}")
    except UsageError as error:
        raise BundleError(f"{error}. Run: liveedit build BUNDLE") from None
    if plans.inputs.key != key:
        raise BundleError(
            f"plans.{key} states inputs whose key is {plans.inputs.key}. Run: liveedit build BUNDLE"
        )
    return plans


def profiles_of(spec: GraphSpec, counts: tuple[int, ...]) -> list[dict[str, tuple[int, ...]]]:
    """Input shapes of each optimisation profile: the token counts, or one profile without any."""
    dynamic = [t for t in spec.inputs if any(isinstance(d, str) for d in t.shape)]
    if not dynamic:
        return []
    for tensor in dynamic:
        unknown = [d for d in tensor.shape if isinstance(d, str) and d != DYNAMIC]
        if unknown:
            raise BundleError(
                f"{spec.file}: input {tensor.name!r} has a dynamic dimension {unknown[0]!r}; only "
                f"{DYNAMIC!r} can be one. Export the bundle again."
            )
    return [
        {t.name: tuple(n if isinstance(d, str) else d for d in t.shape) for t in dynamic}
        for n in counts
    ]


def as_entry(plans: PlanSet) -> dict[str, Any]:
    """The manifest entry of a set."""
    return to_dict(plans)
