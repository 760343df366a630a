"""Fail closed: everything a plan depends on is checked before TensorRT sees a byte of it.

A plan is executable code. Only plans that the bundle's manifest lists and hashes are read, and the
bytes handed out are the bytes that were hashed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import GraphSpec, Manifest, TensorSpec
from liveedit.engines.flavour import resolve, version
from liveedit.engines.gpu import compute_capability
from liveedit.engines.plan import PlanSet, PluginLibrary, here, read_sets
from liveedit.engines.plugin_library import PluginChoice, find_plugins
from liveedit.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What this machine would run a plan with."""

    flavour: str
    version: str
    platform: str
    compute_capability: str | None
    plugins: PluginLibrary | None


def environment(flavour: str = "auto") -> Environment:
    """This machine, with the named flavour.

    Raises:
        BackendError: the flavour is not installed or does not load.
    """
    chosen = resolve(flavour)
    return Environment(
        flavour=chosen.name,
        version=version(chosen),
        platform=here(),
        compute_capability=compute_capability(),
        plugins=find_plugins().identity,
    )


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """One field of a plan set that differs from the bundle or from this machine."""

    field: str
    plan: str
    present: str

    def __str__(self) -> str:
        return f"{self.field} is {self.plan} in the plan and {self.present} here"


def mismatches(
    plans: PlanSet, graphs: dict[str, GraphSpec], manifest: Manifest, env: Environment
) -> list[Mismatch]:
    """Every reason why a set of plans cannot run these graphs on this machine."""
    inputs, found = plans.inputs, []

    def compare(field: str, stated: str | None, present: str | None) -> None:
        if stated != present:
            found.append(Mismatch(field=field, plan=str(stated), present=str(present)))

    compare("flavour", inputs.flavour, env.flavour)
    compare("version", inputs.version, env.version)
    compare("platform", inputs.platform, env.platform)
    if env.compute_capability not in inputs.targets:
        compare("target GPU", ", ".join(inputs.targets), env.compute_capability or "no GPU")
    if inputs.plugins is not None:
        compare("plugin library", _plugins(inputs.plugins), _plugins(env.plugins))
    for file, sha256 in sorted(inputs.onnx.items()):
        entry = manifest.files.get(file)
        compare(f"sha256 of {file}", sha256[:12], entry.sha256[:12] if entry else None)
    for name, plan in sorted(plans.graphs.items()):
        if name in graphs:
            compare(f"inputs of {name}", _shapes(plan.inputs), _shapes(graphs[name].inputs))
            compare(f"outputs of {name}", _shapes(plan.outputs), _shapes(graphs[name].outputs))
    total = manifest.stream.block_seq_length
    if total not in inputs.profiles:
        compare("token counts", ", ".join(map(str, inputs.profiles)), f"{total} for a full pass")
    return found


def _plugins(library: PluginLibrary | None) -> str:
    return f"{library.kind} {library.sha256[:12]}" if library else "none"


def _shapes(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in sorted(tensors, key=str))


def select_plans(
    root: Path, manifest: Manifest, precision: str, env: Environment, graphs: tuple[str, ...]
) -> tuple[str, PlanSet]:
    """The key and set of plans that run the named graphs on this machine.

    Raises:
        BundleError: there is none; names the field, both values, and the command that mends it.
    """
    target = f" --target {env.compute_capability}" if env.compute_capability else ""
    mend = f"Run: liveedit build {root} --flavour {env.flavour} --precision {precision}{target}"
    specs = manifest.graphs.get(precision, {})
    sets = {k: s for k, s in read_sets(manifest).items() if s.inputs.precision == precision}
    if not sets:
        raise BundleError(f"the bundle {root} holds no {precision} plans. {mend}")
    reasons = {k: mismatches(s, specs, manifest, env) for k, s in sets.items()}
    fitting = [k for k, found in reasons.items() if not found]
    if not fitting:
        key = min(reasons, key=lambda k: len(reasons[k]))
        raise BundleError(f"plans {key}: {reasons[key][0]}. {mend}")
    key = max(fitting, key=lambda k: sum(g in sets[k].graphs for g in graphs))
    missing = [g for g in graphs if g not in sets[key].graphs]
    if missing:
        raise BundleError(f"plans {key} lack the graph {missing[0]}. {mend}")
    return key, sets[key]


def read_plan(root: Path, manifest: Manifest, plans: PlanSet, graph: str) -> bytes:
    """The bytes of one plan, hashed after reading, so that what is checked is what is loaded.

    Raises:
        BundleError: not listed, missing, or changed.
    """
    name = plans.graphs[graph].plan
    entry = manifest.files.get(name)
    mend = f"Run: liveedit build {root}"
    if entry is None:
        raise BundleError(f"{name} is not listed in the bundle; it will not be loaded. {mend}")
    try:
        data = (root / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{root / name} cannot be read: {error}. {mend}") from None
    actual = hashlib.sha256(data).hexdigest()
    if len(data) != entry.bytes or actual != entry.sha256:
        raise BundleError(
            f"{root / name} was changed: {len(data)} bytes with sha256 {actual[:12]}, the manifest "
            f"states {entry.bytes} bytes and {entry.sha256[:12]}. {mend}"
        )
    return data


def verified_plugins(plans: PlanSet, found: PluginChoice | None = None) -> Path | None:
    """Absolute path of the plugin implementation a set needs, its hash just checked.

    Args:
        found: an implementation; None takes this installation's.

    Raises:
        BundleError: it is missing or is not the one the plans were built with.
    """
    stated = plans.inputs.plugins
    if stated is None:
        return None
    found = found or find_plugins()
    if found.identity != stated:
        raise BundleError(
            f"the plans call the plugin {_plugins(stated)}; this installation has "
            f"{_plugins(found.identity)}. Run: liveedit build BUNDLE"
        )
    return found.path
