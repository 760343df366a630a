"""What plans a bundle holds, and whether they would load here. Needs no TensorRT.

A plan's weights and activations are the library's own totals at build time, in bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import Manifest, read_manifest, verify_file
from liveedit.config import from_dict
from liveedit.engines.flavour import FLAVOURS, installed
from liveedit.engines.layers import LayerTable, precision_by_class
from liveedit.engines.plan import PlanSet, read_sets
from liveedit.engines.verify import Environment, environment, mismatches
from liveedit.errors import BackendError, BundleError, UsageError


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """One plan. ``precision`` counts layers of each compute type, per class, in profile 0."""

    graph: str
    file: str
    plan_bytes: int
    weights_bytes: int
    activation_bytes: int
    precision: dict[str, dict[str, int]]
    num_layers: int
    findings: tuple[str, ...]
    changed: str | None  # why the file is refused, or None


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """The plans of one key. ``refusals`` says why they would not load here; empty: they would."""

    key: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    graph_precision: str
    token_counts: tuple[int, ...]
    plugins: str
    plans: tuple[PlanReport, ...]
    refusals: tuple[str, ...]
    device_bytes: dict[str, int]  # what a stream with these plans takes on the GPU, by purpose


def describe_plans(root: Path, *, check_files: bool = True) -> list[SetReport]:
    """Every set of plans in a bundle, with all reasons why it would not load here.

    Args:
        check_files: hash the plan files too; False reads the manifest and the layer tables only.

    Raises:
        BundleError: the manifest itself is missing, changed or malformed.
    """
    manifest = read_manifest(root)
    reports = []
    for key, plans in read_sets(manifest).items():
        reports.append(
            SetReport(
                key=key,
                flavour=plans.inputs.flavour,
                version=plans.inputs.version,
                targets=plans.inputs.targets,
                graph_precision=plans.inputs.precision,
                token_counts=plans.inputs.profiles,
                plugins=plans.inputs.plugins.kind if plans.inputs.plugins else "none",
                plans=tuple(_plan(root, manifest, plans, g, check_files) for g in plans.graphs),
                refusals=tuple(_refusals(manifest, plans)),
                device_bytes=plans.device_bytes(manifest),
            )
        )
    return reports


def _refusals(manifest: Manifest, plans: PlanSet) -> list[str]:
    flavour = FLAVOURS[plans.inputs.flavour]
    if not installed(flavour):
        return [f"{flavour.name} is not installed here. Run: pip install {flavour.package}"]
    try:
        here: Environment = environment(flavour.name)
    except BackendError as error:
        return [str(error)]
    graphs = manifest.graphs.get(plans.inputs.precision, {})
    return [str(m) for m in mismatches(plans, graphs, manifest, here)]


def _plan(
    root: Path, manifest: Manifest, plans: PlanSet, graph: str, check_files: bool
) -> PlanReport:
    plan, changed = plans.graphs[graph], None
    table = LayerTable(layers=(), weights_bytes=0, activation_bytes=(), warnings=())
    try:
        if check_files:
            verify_file(root, manifest, plan.plan)
        text = verify_file(root, manifest, plan.layers).read_bytes()
        table = from_dict(LayerTable, json.loads(text))
    except (BundleError, UsageError, ValueError) as error:
        changed = str(error)
    layers = table.profile(0)
    entry = manifest.files.get(plan.plan)
    return PlanReport(
        graph=graph,
        file=plan.plan,
        plan_bytes=entry.bytes if entry else 0,
        weights_bytes=plan.weights_bytes,
        activation_bytes=plan.activation_bytes,
        precision=precision_by_class(layers),
        num_layers=len(layers),
        findings=plan.findings,
        changed=changed,
    )


def lines(reports: list[SetReport]) -> list[str]:
    """The reports as text, a block per set."""
    text = []
    for report in reports:
        text.append(
            f"plans {report.key}: {report.flavour} {report.version}, for "
            f"{', '.join(report.targets)}, {report.graph_precision}, token counts "
            f"{', '.join(map(str, report.token_counts))}, plugins {report.plugins}"
        )
        for plan in report.plans:
            text.append(
                f"  {plan.graph}: {_mib(plan.plan_bytes)} on disk, weights "
                f"{_mib(plan.weights_bytes)}, activations {_mib(plan.activation_bytes)}, "
                f"{plan.num_layers} layers"
            )
            for cls, types in plan.precision.items():
                counts = ", ".join(f"{n} {t}" for t, n in sorted(types.items()))
                text.append(f"    {cls}: {counts}")
            text += [f"    gate: {finding}" for finding in plan.findings]
            if plan.changed:
                text.append(f"    refused: {plan.changed}")
        text.append(
            f"  on the GPU, at least {_mib(sum(report.device_bytes.values()))}: "
            + ", ".join(f"{n.replace('_', ' ')} {_mib(b)}" for n, b in report.device_bytes.items())
        )
        if report.refusals or any(p.changed for p in report.plans):
            text += [f"  would not load here: {reason}" for reason in report.refusals]
        else:
            text.append("  would load here")
    return text


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
