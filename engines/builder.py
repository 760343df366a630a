"""Build the plans of a bundle: one child process per graph, one directory per key.

A plan and its layer table are made in a staging folder and renamed when whole; the manifest is
written after each graph. Whatever interrupts a build, what is listed is complete, and the next
build goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from liveedit.bundle import (
    GraphSpec,
    Manifest,
    TensorSpec,
    add_files,
    read_manifest,
    verify_file,
)
from liveedit.config import StreamConfig, from_dict
from liveedit.engines.build_worker import BuildRequest, read_io
from liveedit.engines.child import Progress, run_worker
from liveedit.engines.flavour import FLAVOURS, Flavour, check_targets, resolve, version
from liveedit.engines.gate import Limits, dropped_operands, findings, step_activation_bound
from liveedit.engines.gpu import compute_capability, name_and_driver
from liveedit.engines.graph_facts import GraphFacts, read_facts
from liveedit.engines.layers import LayerTable
from liveedit.engines.onnx_files import verified_graph
from liveedit.engines.plan import (
    BuildInputs,
    BuildOptions,
    BuiltPlan,
    PlanSet,
    as_entry,
    here,
    profiles_of,
    read_sets,
)
from liveedit.engines.plugin_library import OPERATORS, PluginChoice, find_plugins
from liveedit.errors import BackendError, BundleError, UsageError

ENGINES = "engines"
FIRST_FP8 = 89  # compute capability 8.9, Ada
DEFAULT_KEEP = (0.4, 0.3)  # the mask rule keeps at most 0.4 of the tokens, mostly below 0.3


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What one call of ``build_bundle`` did."""

    key: str
    built: tuple[str, ...]
    reused: tuple[str, ...]


def token_counts(stream: StreamConfig, ratios: tuple[float, ...] = DEFAULT_KEEP) -> tuple[int, ...]:
    """Token counts that get a profile: all tokens, then each ratio rounded up to its bucket.

    Every profile is static: the kernels of one count cost the others nothing, and weights are
    stored once for all of them. The runtime pads a smaller count up to the next one.
    """
    total = stream.block_seq_length
    counts = {total}
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise UsageError(f"a kept share must be above 0 and at most 1, got {ratio}")
        buckets = math.ceil(ratio * total / stream.keep_bucket - 1e-9)
        counts.add(min(total, buckets * stream.keep_bucket))
    return tuple(sorted(counts, reverse=True))


def build_bundle(
    root: Path,
    *,
    flavour: str = "auto",
    targets: tuple[str, ...] = (),
    precision: str = "fp16",
    graphs: tuple[str, ...] = (),
    keep: tuple[float, ...] = DEFAULT_KEEP,
    plugins: bool = True,
    options: BuildOptions | None = None,
    progress: TextIO | None = None,
) -> BuildPlan:
    """Build every graph of one precision, or the named ones, into ``root/engines/<key>/``.

    Args:
        targets: compute capabilities such as ``sm89``; empty takes the present GPU.
        graphs: names of graphs; empty takes all.
        keep: shares of kept tokens that get a profile of their own, besides all tokens.
        plugins: False builds the custom operators out of native layers.

    Raises:
        LiveEditError: a sentence for whatever a user can mend.
    """
    chosen, progress = resolve(flavour), progress or sys.stderr
    present = compute_capability()
    targets = tuple(sorted(set(targets), key=lambda t: (len(t), t)))
    targets = targets or ((present,) if present else ())
    check_targets(chosen, targets, present)
    check_fp8(precision, targets)
    specs = graphs_of(read_manifest(root), precision, graphs)
    with _only_builder(root) as staging:
        # Read again: what another build has listed meanwhile must not be lost.
        return _build(
            root, read_manifest(root), chosen, targets, precision, specs, keep,
            find_plugins() if plugins else None, options or BuildOptions(), staging, progress,
        )  # fmt: skip


def _build(
    root: Path,
    manifest: Manifest,
    flavour: Flavour,
    targets: tuple[str, ...],
    precision: str,
    specs: dict[str, GraphSpec],
    keep: tuple[float, ...],
    plugins: PluginChoice | None,
    options: BuildOptions,
    staging: Path,
    progress: TextIO,
) -> BuildPlan:
    onnx: dict[str, str] = {}
    facts: dict[str, GraphFacts] = {}
    weights_bytes: dict[str, int] = {}
    calls_plugins = False
    for name, spec in manifest.graphs[precision].items():
        model, files = verified_graph(root, manifest, spec)
        onnx |= files
        facts[name] = read_facts(model)
        weights_bytes[name] = sum(manifest.files[f].bytes for f in files)
        calls_plugins |= plugins is not None and any(
            n.op_type in OPERATORS for n in model.graph.node
        )
    inputs = BuildInputs(
        flavour=flavour.name,
        version=version(flavour),
        platform=here(),
        targets=targets,
        precision=precision,
        onnx=onnx,
        plugins=plugins.identity if plugins and calls_plugins else None,
        profiles=token_counts(manifest.stream, keep),
        options=options,
    )
    built, reused = [], []
    for name, spec in specs.items():
        label = Progress(name, progress)
        if _is_built(root, manifest, inputs.key, name):
            label.finish("already built")
            reused.append(name)
            continue
        _need_space(root, name, weights_bytes[name])
        limits = _limits(manifest, precision, name)
        plan = _build_graph(root, inputs, spec, name, facts[name], limits, plugins, staging, label)
        sets = read_sets(manifest, skip_malformed=True)
        plans = sets.get(inputs.key, PlanSet(inputs=inputs))
        plans = replace(plans, graphs={**plans.graphs, name: plan})
        manifest = add_files(
            root,
            manifest,
            [plan.plan, plan.layers],
            plans={k: as_entry(s) for k, s in {**sets, inputs.key: plans}.items()},
        )
        label.finish(
            f"built in {plan.parse_s + plan.build_s:.1f} s, "
            f"{manifest.files[plan.plan].bytes} bytes, peak memory {plan.peak_rss_bytes} bytes"
        )
        for finding in plan.findings:
            print(f"  {name}: {finding}", file=progress)
        built.append(name)
    return BuildPlan(key=inputs.key, built=tuple(built), reused=tuple(reused))


def _build_graph(
    root: Path,
    inputs: BuildInputs,
    spec: GraphSpec,
    name: str,
    facts: GraphFacts,
    limits: Limits,
    plugins: PluginChoice | None,
    staging: Path,
    progress: Progress,
) -> BuiltPlan:
    stage = staging / name
    stage.mkdir(parents=True)
    request = BuildRequest(
        flavour=inputs.flavour,
        targets=inputs.targets,
        onnx=str((root / spec.file).resolve()),
        plan=str(stage / f"{name}.plan"),
        layers=str(stage / f"{name}.layers.json"),
        profiles=tuple(profiles_of(spec, inputs.profiles)),
        plugins=inputs.plugins,
        plugin_path=str(plugins.path) if plugins else None,
        options=inputs.options,
        timing_cache=_timing_cache(inputs),
        parent=os.getpid(),
    )
    done = run_worker(request, stage, progress)
    found_inputs, found_outputs = read_io(done["inputs"]), read_io(done["outputs"])
    check_io(spec.file, "input", spec.inputs, found_inputs)
    check_io(spec.file, "output", spec.outputs, found_outputs)
    table = from_dict(LayerTable, json.loads((stage / f"{name}.layers.json").read_bytes()))
    if dropped := dropped_operands(table.warnings):
        raise BackendError(
            f"{name}: {inputs.flavour} ignores an operand of the graph, so the plan would compute "
            f"something else: {dropped[0]} Export the bundle again with this version."
        )
    folder = Path(ENGINES) / inputs.key
    (root / folder).mkdir(parents=True, exist_ok=True)
    for suffix in ("plan", "layers.json"):
        os.replace(stage / f"{name}.{suffix}", root / folder / f"{name}.{suffix}")
    return BuiltPlan(
        plan=str(folder / f"{name}.plan"),
        layers=str(folder / f"{name}.layers.json"),
        inputs=found_inputs,
        outputs=found_outputs,
        weights_bytes=done["weights_bytes"],
        activation_bytes=done["activation_bytes"],
        findings=tuple(findings(facts, table, plugins=inputs.plugins is not None, limits=limits)),
        parse_s=done["parse_s"],
        build_s=done["build_s"],
        peak_rss_bytes=done["peak_rss_bytes"],
    )


def check_fp8(precision: str, targets: tuple[str, ...]) -> None:
    """
    Raises:
        UsageError: FP8 for a GPU without it.
    """
    without = [t for t in targets if int(t.removeprefix("sm")) < FIRST_FP8]
    if precision == "fp8" and without:
        raise UsageError(
            f"{without[0]} has no FP8 matrix products; sm{FIRST_FP8} and later have. Leave that "
            "target out or build --precision int8."
        )


def check_io(
    file: str, what: str, stated: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]
) -> None:
    """Refuse a graph or plan whose inputs or outputs are not those the manifest states."""
    wanted, got = {t.name: t for t in stated}, {t.name: t for t in found}
    for name in sorted(wanted.keys() ^ got.keys()):
        has, lacks = ("the manifest", file) if name in wanted else (file, "the manifest")
        raise BundleError(f"{what} {name!r} is in {has} and not in {lacks}. Export again.")
    for name, tensor in wanted.items():
        if tensor != got[name]:
            raise BundleError(
                f"{what} {name!r} of {file} is {got[name].dtype} {list(got[name].shape)}; the "
                f"manifest states {tensor.dtype} {list(tensor.shape)}. Export again."
            )


def graphs_of(
    manifest: Manifest, precision: str, names: tuple[str, ...] = ()
) -> dict[str, GraphSpec]:
    """The named graphs of one precision, or all of them."""
    if precision not in manifest.graphs:
        raise UsageError(
            f"this bundle has no {precision} graphs; it has {', '.join(sorted(manifest.graphs))}. "
            f"Run: liveedit export --precision {precision}"
        )
    graphs = manifest.graphs[precision]
    for name in names:
        if name not in graphs:
            raise UsageError(f"no graph {name!r}; there are {', '.join(sorted(graphs))}")
    return {n: graphs[n] for n in names or graphs}


def _limits(manifest: Manifest, precision: str, name: str) -> Limits:
    if name == "dit_step" and precision == "fp16":
        bound = step_activation_bound(manifest.model.dit, manifest.stream)
        return Limits(activation_bytes=bound)
    if name.startswith(("encode", "decode")):
        return Limits(weights_slack=0.06)  # convolutions keep some weights in two layouts
    return Limits()


def _is_built(root: Path, manifest: Manifest, key: str, name: str) -> bool:
    plans = read_sets(manifest, skip_malformed=True).get(key)
    if plans is None or name not in plans.graphs:
        return False
    try:
        for file in (plans.graphs[name].plan, plans.graphs[name].layers):
            verify_file(root, manifest, file)
    except BundleError:
        return False
    return True


def _need_space(root: Path, name: str, weights_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if free < weights_bytes:
        raise BundleError(
            f"{name}: the plan holds about {weights_bytes} bytes of weights, and {free} bytes are "
            f"free on the disk of {root}. Free space and run the same command again."
        )


def _timing_cache(inputs: BuildInputs) -> str | None:
    """Kernel timings hold for one library version, GPU model and driver: the name states all."""
    present = name_and_driver()
    if not FLAVOURS[inputs.flavour].has_timing_cache or present is None:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.]+", "-", "-".join([inputs.flavour, inputs.version, *present]))
    return str(home / "liveedit-trt" / f"{name}.timing")


@contextlib.contextmanager
def _only_builder(root: Path) -> Iterator[Path]:
    """Hold the build lock of a bundle; yields an empty staging folder on the bundle's disk."""
    folder = root / ENGINES
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackendError(f"another build of {root} is running; wait for its end") from None
        staging = folder / ".staging"
        shutil.rmtree(staging, ignore_errors=True)  # what a killed build left
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
