"""Builds of plans as records: time, peak memory, and what the library says the plan takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from liveedit.bundle import read_manifest
from liveedit.config import MODELS
from liveedit.engines.plan import read_sets
from liveedit.profiling.records import Record, new_record, single, write_record


def build_records(root: Path, key: str, graphs: Sequence[str], command: str) -> list[Record]:
    """One record for each graph of the plan set ``key`` that was just built."""
    manifest = read_manifest(root)
    plans = read_sets(manifest)[key]
    inputs, dit = plans.inputs, manifest.model.dit
    records = []
    for graph in graphs:
        plan = plans.graphs[graph]
        configuration = {
            "graph": graph,
            "model": manifest.model.name,
            "dim": dit.dim,
            "num_layers": dit.num_layers,
            "height_px": manifest.stream.height_px,
            "width_px": manifest.stream.width_px,
            "flavour": inputs.flavour,
            "version": inputs.version,
            "targets": list(inputs.targets),
            "precision": inputs.precision,
            "token_counts": list(inputs.profiles),
            "plugins": inputs.plugins.kind if inputs.plugins else "none",
        }
        figures = {
            "parse": single(plan.parse_s, "s", "lower"),
            "build": single(plan.build_s, "s", "lower"),
            "peak_rss": single(plan.peak_rss_bytes, "bytes", "lower"),
            "plan": single(manifest.files[plan.plan].bytes, "bytes", "lower"),
            "weights": single(plan.weights_bytes, "bytes"),
            "activations": single(plan.activation_bytes, "bytes", "lower"),
            "gate_findings": single(len(plan.findings), "findings", "lower"),
        }
        records.append(new_record("build", graph, command, configuration, figures))
    return records


def build_name(record: Record) -> str:
    """``<graph>-<layers>x<width>[-int8][-<picture>][-native]-<flavour>-<targets>``.

    The picture's size is named where it is not the usual one of the model.
    """
    c = record.configuration
    precision = [] if c["precision"] == "fp16" else [c["precision"]]
    _, usual = MODELS.get(c["model"], (None, None))
    size = (c["height_px"], c["width_px"])
    picture = [] if usual and size == (usual.height_px, usual.width_px) else ["{}x{}".format(*size)]
    native = ["native"] if c["plugins"] == "none" else []
    blocks = f"{c['num_layers']}x{c['dim']}"
    kind = [*precision, *picture, *native, c["flavour"], *c["targets"]]
    return "-".join([c["graph"], blocks, *kind])


def write_build_records(folder: Path, records: Sequence[Record]) -> list[Path]:
    """``build-<name>.json`` for each."""
    return [write_record(folder / f"build-{build_name(r)}.json", r) for r in records]
