"""``liveedit inspect``: what a bundle holds and what it asks for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liveedit.bundle import Manifest, TensorSpec, read_manifest, refusal, verify_file
from liveedit.config import to_dict
from liveedit.engines.inspect import describe_plans
from liveedit.engines.inspect import lines as plan_lines
from liveedit.runtime.memory_budget import memory_budget
from liveedit.runtime.shipped import shipped
from liveedit.schedule import denoising_steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="default: the one that is shipped"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--verify", action="store_true", help="hash every file first")


def run(options: argparse.Namespace) -> int:
    root = options.bundle or shipped("tiny")
    manifest = read_manifest(root)
    if options.verify:
        for name in manifest.files:
            verify_file(root, manifest, name)
    facts = describe(manifest)
    plans = describe_plans(root, check_files=options.verify)
    facts["plans"] = [to_dict(report) for report in plans]
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        print("\n".join([table(root, facts), *([""] if plans else []), *plan_lines(plans)]))
    return 0


def describe(manifest: Manifest) -> dict[str, Any]:
    """Everything the command prints, as JSON data. Sizes are bytes."""
    stream = manifest.stream
    return {
        "model": manifest.model.name,
        "schema": manifest.schema,
        "written_by": manifest.written_by,
        "notes": manifest.notes,
        "refused": {p: why for p in manifest.graphs if (why := refusal(manifest, p))},
        "frame": {"height_px": stream.height_px, "width_px": stream.width_px},
        "pixel_range": list(manifest.pixel_range),
        "stream": to_dict(stream),
        "tokens_per_chunk": stream.block_seq_length,
        "kv_cache_tokens": stream.kv_cache_length,
        "steps": [
            {"timestep": s.timestep, "sigma": s.sigma, "sigma_next": s.sigma_next}
            for s in denoising_steps(stream)
        ],
        "codec": {"name": manifest.model.codec, **to_dict(manifest.codec)},
        "graphs": {
            precision: {
                name: {
                    "file": graph.file,
                    "inputs": {t.name: _shape(t) for t in graph.inputs},
                    "outputs": {t.name: _shape(t) for t in graph.outputs},
                    "in_place": len(graph.aliases),
                }
                for name, graph in graphs.items()
            }
            for precision, graphs in manifest.graphs.items()
        },
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "total_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "memory_bytes": {p: memory_budget(manifest, p) for p in manifest.graphs},
    }


def _shape(tensor: TensorSpec) -> str:
    return f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def table(root: Path, facts: dict[str, Any]) -> str:
    """The facts for people."""
    stream, codec = facts["stream"], facts["codec"]
    window = stream["local_attn_size"]
    steps = ", ".join(f"{step['timestep']:g}" for step in facts["steps"])
    lines = [
        f"{root}: {facts['model']}, schema {facts['schema']}",
        f"  frame   {facts['frame']['width_px']} x {facts['frame']['height_px']} px, "
        f"pixels in {facts['pixel_range']}",
        f"  chunk   {stream['num_frame_per_block']} latent frames, "
        f"{facts['tokens_per_chunk']} tokens, kept tokens in steps of {stream['keep_bucket']}",
        f"  window  {window} latent frames, {stream['sink_size']} of them the sink; "
        f"{facts['kv_cache_tokens']} KV rows",
        f"  steps   {steps}",
        f"  codec   {codec['name']}: {codec['encode_first_frames']} then "
        f"{codec['encode_next_frames']} frames per latent, delay {codec['encode_delay']}",
    ]
    for precision, graphs in facts["graphs"].items():
        mark = ": REFUSED by its verdict, see notes" if precision in facts["refused"] else ""
        lines += ["", f"graphs, {precision}{mark}"]
        rows = [
            (name, g["file"], f"{len(g['inputs'])} in", f"{len(g['outputs'])} out",
             f"{g['in_place']} in place")
            for name, g in graphs.items()
        ]  # fmt: skip
        lines += _columns(rows)
    for precision, budget in facts["memory_bytes"].items():
        lines += ["", f"memory, {precision}"]
        rows2 = [(name.replace("_", " "), _size(count)) for name, count in budget.items()]
        lines += _columns([*rows2, ("sum", _size(sum(budget.values())))])
    lines += ["", f"files, {_size(facts['total_bytes'])}"]
    lines += _columns([(name, _size(count)) for name, count in facts["files"].items()])
    for title in ("plans", "written_by", "notes"):
        if facts[title]:
            lines += ["", title.replace("_", " ")]
            held = facts[title]
            lines += _columns(
                list(held.items()) if isinstance(held, dict) else [(p,) for p in held]
            )
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["  none"]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _size(count: int) -> str:
    """``1536`` -> ``1.5 KiB``."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
