"""The gate on every kind of graph there is, for three GPUs, none of them present.

    python -m liveedit.profiling.gate_matrix --out profiling/records

exports the cases below with random weights, builds their plans and counts what the layer tables
hold. The tests run a part of it, each GPU at least once.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from liveedit.bundle import read_manifest
from liveedit.config import (
    LIVEEDIT_1_3B,
    DiTConfig,
    ModelConfig,
    StreamConfig,
    TextEncoderConfig,
    WanVAEConfig,
    from_dict,
)
from liveedit.engines.builder import build_bundle
from liveedit.engines.gate import conversions
from liveedit.engines.graph_facts import GraphFacts, read_facts
from liveedit.engines.layers import LayerTable
from liveedit.engines.onnx_files import verified_graph
from liveedit.engines.plan import BuiltPlan, read_sets
from liveedit.errors import LiveEditError, UsageError
from liveedit.profiling.records import Figure, new_record, single, write_record
from liveedit.runtime.shipped import shipped

TARGETS = ("sm86", "sm89", "sm120")


@dataclass(frozen=True, kw_only=True)
class GateCase:
    """Some networks of an editor. ``model`` None stands for the shipped bundle, whole."""

    name: str
    model: ModelConfig | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    networks: tuple[str, ...] = ("dit",)
    plugins: bool = True
    keep: tuple[float, ...] = ()  # profiles besides all tokens


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One plan beside the graph it was built from."""

    graph: str
    facts: GraphFacts
    table: LayerTable
    plan: BuiltPlan

    def count(self, cls: str) -> int:
        """Layers of a class in the first profile."""
        return sum(layer.cls == cls for layer in self.table.profile(0))

    @property
    def conversions(self) -> int:
        """Standalone casts and reformats of more than a few bytes, first profile."""
        return len(conversions(self.table.profile(0)))

    @property
    def unused_inputs(self) -> tuple[str, ...]:
        return tuple(w for w in self.table.warnings if "unused" in w.lower())


_WIDE = replace(LIVEEDIT_1_3B, name="wide", dit=replace(LIVEEDIT_1_3B.dit, num_layers=2))
_NARROW = ModelConfig(
    name="narrow",
    dit=DiTConfig(dim=256, num_heads=2, ffn_dim=512, freq_dim=64, text_dim=64, text_len=32),
    text=TextEncoderConfig(
        vocab_size=512, dim=64, dim_attn=64, ffn_dim=128, num_heads=1, num_layers=2
    ),
    wan_vae=WanVAEConfig(base_dim=16),
)  # 30 blocks whose heads have the official size
_TEXT = replace(
    _NARROW,
    name="text",
    dit=replace(_NARROW.dit, text_dim=256),
    text=TextEncoderConfig(
        vocab_size=512, dim=256, dim_attn=256, ffn_dim=640, num_heads=4, num_layers=2
    ),
)  # of the official proportions: heads of 64, an FFN 2.5 times as wide
_SMALL = StreamConfig(height_px=64, width_px=96, local_attn_size=9, keep_bucket=8)

_ALL = ("dit", "codec", "text_encoder")

CASES = {
    case.name: case
    for case in (
        GateCase(name="shipped", networks=_ALL, keep=(0.4,)),
        GateCase(name="shipped-native", networks=_ALL, plugins=False, keep=(0.4,)),
        GateCase(name="wide", model=_WIDE),
        GateCase(name="wide-native", model=_WIDE, plugins=False),
        GateCase(name="narrow", model=_NARROW, stream=_SMALL),
        GateCase(name="wan-vae", model=_NARROW, stream=_SMALL, networks=("codec",)),
        GateCase(name="text-encoder", model=_TEXT, stream=_SMALL, networks=("text_encoder",)),
    )
}


def write_case(case: GateCase, root: Path) -> Path:
    """The bundle of a case, FP16, with random weights."""
    if case.model is None:
        return Path(shutil.copytree(shipped("tiny"), root))
    from liveedit.export.bundle_writer import write_bundle
    from liveedit.export.sources import random_sources

    weights, tokenizer, notes = random_sources(case.model, 0)
    chosen = {name: weights[name] for name in case.networks}
    write_bundle(
        root, case.model, case.stream, chosen, tokenizer, precisions=("fp16",), notes=notes
    )
    return root


def run_case(case: GateCase, root: Path, target: str) -> list[GateResult]:
    """Build the plans of a case's bundle for one GPU and read their layer tables.

    Raises:
        LiveEditError: the builder refuses a graph or drops an operand of it.
    """
    result = build_bundle(
        root, flavour="tensorrt-rtx", targets=(target,), keep=case.keep, plugins=case.plugins,
        progress=io.StringIO(),
    )  # fmt: skip
    manifest = read_manifest(root)
    return [
        GateResult(
            graph=name,
            facts=read_facts(verified_graph(root, manifest, manifest.graphs["fp16"][name])[0]),
            table=from_dict(LayerTable, json.loads((root / plan.layers).read_bytes())),
            plan=plan,
        )
        for name, plan in read_sets(manifest)[result.key].graphs.items()
    ]


def figures(results: list[GateResult], target: str) -> dict[str, Figure]:
    """What the plans of one case and GPU hold, summed over its graphs."""

    def total(what: Iterator[float], unit: str) -> Figure:
        return single(sum(what), unit)

    attentions = (len(r.facts.attentions) for r in results)
    merged = (len(a.projections) for r in results for a in r.facts.attentions)
    return {
        f"{target}.findings": total((len(r.plan.findings) for r in results), "findings"),
        f"{target}.unused_inputs": total((len(r.unused_inputs) for r in results), "inputs"),
        f"{target}.attention_nodes": total(attentions, "nodes"),
        f"{target}.fused_attentions": total((r.count("attention") for r in results), "layers"),
        f"{target}.merged_projections": total(merged, "groups"),
        f"{target}.plugins": total((r.count("plugin") for r in results), "layers"),
        f"{target}.conversions": total((r.conversions for r in results), "layers"),
        f"{target}.weights": total((r.plan.weights_bytes for r in results), "bytes"),
        f"{target}.activations": single(max(r.plan.activation_bytes for r in results), "bytes"),
        f"{target}.build": total((r.plan.parse_s + r.plan.build_s for r in results), "s"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m liveedit.profiling.gate_matrix")
    parser.add_argument("--case", action="append", default=[], choices=sorted(CASES))
    parser.add_argument("--target", default=",".join(TARGETS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a record of each case")
    options = parser.parse_args()
    failed = 0
    try:
        for name in options.case or CASES:
            failed += _run(CASES[name], tuple(options.target.split(",")), options.out)
    except LiveEditError as error:
        print(f"gate_matrix: {error}", file=sys.stderr)
        return error.exit_code
    return 1 if failed else 0


def _run(case: GateCase, targets: tuple[str, ...], out: Path | None) -> int:
    """Findings of a case; prints them and writes its record."""
    if unknown := [t for t in targets if t not in TARGETS]:
        raise UsageError(f"no target {unknown[0]!r} in the matrix; there are {', '.join(TARGETS)}")
    measured: dict[str, Figure] = {}
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        root = write_case(case, Path(folder) / "bundle")
        for target in targets:
            results = run_case(case, root, target)
            measured |= figures(results, target)
            lines = [f"{r.graph}: {line}" for r in results for line in r.plan.findings]
            found += len(lines)
            print(f"{case.name} {target}: {', '.join(r.graph for r in results)}: "
                  f"{'; '.join(lines) or 'no findings'}", flush=True)  # fmt: skip
        keys = next(iter(read_manifest(root).plans.values()))["inputs"]
    if out is not None:
        configuration = {
            "case": case.name,
            "flavour": keys["flavour"],
            "version": keys["version"],
            "targets": list(targets),
            "plugins": case.plugins,
            "token_counts": keys["profiles"],
        }
        command = shlex.join(["python", "-m", "liveedit.profiling.gate_matrix", *sys.argv[1:]])
        record = new_record("gate", case.name, command, configuration, measured)
        write_record(out / f"gate-{case.name}.json", record)
    return found


if __name__ == "__main__":
    sys.exit(main())
