"""Change single bytes of a bundle and see that each change is refused before TensorRT.

    python -m liveedit.engines.fuzz --count 1000000

Works on a copy. A change is refused if the load path raises a sentence of ours; any other exception
is a crash, and coming through is an acceptance. Both must be zero.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from liveedit.bundle import (
    MANIFEST,
    CodecSpec,
    GraphSpec,
    Manifest,
    TensorSpec,
    add_files,
    file_entries,
    read_manifest,
    sha256_file,
    verify_file,
    write_manifest,
)
from liveedit.config import named_config
from liveedit.engines.plan import (
    BuildInputs,
    BuiltPlan,
    PlanSet,
    PluginLibrary,
    as_entry,
    here,
    read_sets,
)
from liveedit.engines.plugin_library import PluginChoice
from liveedit.engines.verify import Environment, read_plan, select_plans, verified_plugins
from liveedit.errors import LiveEditError, UsageError

PLUGINS = "plugins.so"


@dataclass
class FuzzReport:
    """Counts by file kind; ``accepted`` and ``crashed`` name each failing change."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)


def write_sample(root: Path) -> None:
    """A bundle with a graph, weights, a plan and a plugin library: small files of random bytes."""
    source = random.Random(0)
    names = ["tokenizer.json", "fp16/dit_step.onnx", "fp16/dit_step.onnx.data", PLUGINS]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(source.randbytes(600))
    model, stream = named_config("tiny")
    tensor = TensorSpec(name="noisy", dtype="float16", shape=(1, 16, 3, 16, 28))
    keep = TensorSpec(name="keep_index", dtype="int32", shape=("num_keep",))
    graph = GraphSpec(file=names[1], inputs=(tensor, keep), outputs=(tensor,))
    manifest = Manifest(
        written_by={"liveedit": "fuzz"},
        model=model,
        stream=stream,
        codec=CodecSpec(
            encode_first_frames=4, encode_next_frames=4, decode_first_trim=3, encode_delay=0
        ),
        graphs={"fp16": {"dit_step": graph}},
        files=file_entries(root, names[:3]),
    )
    inputs = BuildInputs(
        flavour="tensorrt-rtx",
        version="1.0",
        platform=here(),
        targets=("sm89",),
        precision="fp16",
        onnx={name: manifest.files[name].sha256 for name in names[1:3]},
        plugins=PluginLibrary(kind="library", sha256=sha256_file(root / PLUGINS)),
        profiles=(stream.block_seq_length,),
    )
    write_manifest(root, manifest)
    add_stand_in(root, inputs, plan=source.randbytes(900), layers=b"{}")


def unbuilt(graph: GraphSpec, plan: str, layers: str = "") -> BuiltPlan:
    """How a manifest lists a plan of ``graph``, for files that no builder made."""
    return BuiltPlan(
        plan=plan,
        layers=layers,
        inputs=graph.inputs,
        outputs=graph.outputs,
        weights_bytes=1,
        activation_bytes=1,
        findings=(),
        parse_s=0.0,
        build_s=0.0,
        peak_rss_bytes=1,
    )


def add_stand_in(
    root: Path, inputs: BuildInputs, *, plan: bytes, layers: bytes
) -> tuple[Manifest, PlanSet]:
    """List a plan of ``dit_step`` that nobody built: its bytes must never reach TensorRT."""
    manifest = read_manifest(root)
    graph = manifest.graphs[inputs.precision]["dit_step"]
    folder = f"engines/{inputs.key}"
    (root / folder).mkdir(parents=True)
    (root / folder / "dit_step.plan").write_bytes(plan)
    (root / folder / "dit_step.layers.json").write_bytes(layers)
    built = unbuilt(graph, f"{folder}/dit_step.plan", f"{folder}/dit_step.layers.json")
    plans = PlanSet(inputs=inputs, graphs={"dit_step": built})
    entries = {inputs.key: as_entry(plans)}
    return add_files(root, manifest, [built.plan, built.layers], plans=entries), plans


class Loader:
    """The checks before deserialisation, on the machine that the first plan set was made for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sets = read_sets(read_manifest(root))
        if not sets:
            raise UsageError(f"{root} holds no plans to change. Run: liveedit build {root}")
        first = next(iter(sets.values()))
        inputs, self.precision, self.graphs = first.inputs, first.inputs.precision, first.graphs
        self.machine = Environment(
            flavour=inputs.flavour,
            version=inputs.version,
            platform=inputs.platform,
            compute_capability=inputs.targets[0],
            plugins=inputs.plugins,
        )
        self.manifest, self.plans = self.select()

    def select(self) -> tuple[Manifest, PlanSet]:
        manifest = read_manifest(self.root)
        graphs = tuple(self.graphs)
        _, plans = select_plans(self.root, manifest, self.precision, self.machine, graphs)
        return manifest, plans

    def load(self, changed: str = MANIFEST) -> None:
        """Read everything; a manifest that did not change is not read again."""
        if changed == MANIFEST:
            self.manifest, self.plans = self.select()
        path, plugins = self.root / PLUGINS, self.plans.inputs.plugins
        if plugins is not None and path.is_file():
            identity = PluginLibrary(kind=plugins.kind, sha256=sha256_file(path))
            verified_plugins(self.plans, PluginChoice(identity=identity, path=path.resolve()))
        for name in self.plans.inputs.onnx:
            verify_file(self.root, self.manifest, name)
        for graph in self.graphs:
            read_plan(self.root, self.manifest, self.plans, graph)


def fuzz(root: Path, count: int, seed: int = 0) -> FuzzReport:
    """Make ``count`` changes of one byte each, undoing each, in ``root`` (a bundle with plans)."""
    loader = Loader(root)
    loader.load()
    files = [MANIFEST, *(n for n in read_manifest(root).files if _is_checked(n))]
    files += [PLUGINS] if (root / PLUGINS).is_file() else []
    source, report = random.Random(seed), FuzzReport()
    with contextlib.ExitStack() as stack:
        handles = {n: stack.enter_context((root / n).open("r+b", buffering=0)) for n in files}
        original = {name: (root / name).read_bytes() for name in files}
        for _ in range(count):
            name = source.choice(files)
            position = source.randrange(len(original[name]))
            before = original[name][position]
            after = before ^ source.choice([1 << source.randrange(8), source.randrange(1, 256)])
            change = f"{name} byte {position}: {before} -> {after}"
            _put(handles[name], position, after)
            try:
                loader.load(name)
                report.accepted.append(change)
            except LiveEditError:
                report.refused[name.rsplit(".", 1)[-1]] += 1
            except Exception as error:
                report.crashed.append(f"{change}: {type(error).__name__}: {error}")
            _put(handles[name], position, before)
    loader.load()
    return report


def _put(handle: BinaryIO, position: int, value: int) -> None:
    handle.seek(position)
    handle.write(bytes([value]))


def _is_checked(name: str) -> bool:
    """Layer tables and the tokenizer are not read on the way to a plan."""
    return name.endswith((".onnx", ".data", ".plan"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m liveedit.engines.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="a bundle with plans (default: a small sample)")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bundle"
        if options.bundle is None:
            root.mkdir()
            write_sample(root)
        else:
            shutil.copytree(options.bundle, root)
        try:
            report = fuzz(root, options.count, options.seed)
        except LiveEditError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    for change in (*report.accepted[:10], *report.crashed[:10]):
        print(change, file=sys.stderr)
    result = {
        "changes": options.count,
        "refused": dict(report.refused),
        "accepted": len(report.accepted),
        "crashed": len(report.crashed),
        "elapsed_s": round(time.monotonic() - start, 1),
    }
    print(json.dumps(result))
    return 1 if report.accepted or report.crashed else 0


if __name__ == "__main__":
    sys.exit(main())
