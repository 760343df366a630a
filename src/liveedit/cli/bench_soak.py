"""`liveedit bench soak`: does a long stream stay as it began?"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from liveedit.cli.stream_options import add_stream_arguments
from liveedit.config import to_dict
from liveedit.profiling.records import new_record, write_record
from liveedit.profiling.soak import soak
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.shipped import shipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_stream_arguments(parser)
    parser.add_argument("--minutes", type=float, help="how long, instead of --chunks")
    parser.add_argument("--chunks", type=int, help="default: 1000")
    parser.add_argument("--judge-latency", action="store_true", help="fail when latency rises, too")
    parser.add_argument(
        "--plant-leak", type=int, default=0, metavar="BYTES", help="leak per chunk, as a self-test"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write a record")


def run(options: argparse.Namespace) -> int:
    chunks = options.chunks
    if chunks is None and options.minutes is None:
        chunks = 1000
    bundle = options.bundle or shipped("tiny")

    def show(chunk: int, seconds: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{chunk} chunks, {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    result = soak(
        bundle,
        chunks=chunks,
        minutes=options.minutes,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        policy=MaskCachePolicy(
            mode=options.mask_cache,
            keep_ratio=options.keep_ratio,
            token_budget=options.token_budget,
        ),
        leak_bytes=options.plant_leak,
        progress=show,
    )
    record = new_record(
        "soak",
        f"{bundle.name}-{options.backend}",
        shlex.join(["liveedit", *sys.argv[1:]]),
        {
            "bundle": bundle.name,
            "backend": options.backend,
            "mask": options.mask_cache,
            "keep": options.keep_ratio,
            "threads": options.threads or 0,
        },
        result.figures(),
    )
    print(f"{result.chunks} chunks in {result.seconds:.1f} s")
    for name, figure in record.figures.items():
        print(f"  {name}: {figure.value:.4g} {figure.unit}")
    print("  per chunk: " + ", ".join(f"{k} {v}" for k, v in sorted(result.calls.items())))
    failures = result.failures(latency=options.judge_latency)
    for sentence in failures:
        print(f"FAILED: {sentence}")
    print("failed" if failures else "passed: memory, calls and bytes per chunk stayed constant")
    if options.out:
        write_record(options.out, record)
    print(json.dumps(to_dict(record), allow_nan=False))
    return 1 if failures else 0
