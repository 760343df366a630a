"""``liveedit build``: the TensorRT plans of a bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by liveedit export")
    parser.add_argument(
        "--flavour",
        default="auto",
        choices=["auto", "tensorrt", "tensorrt-rtx"],
        help="library to build with (default: the one installed)",
    )
    parser.add_argument(
        "--target",
        default="",
        metavar="SM,...",
        help="GPUs the plans are for, such as sm86,sm89,sm120 (default: the GPU here)",
    )
    parser.add_argument("--precision", default="fp16", help="graphs to build (default: fp16)")
    parser.add_argument(
        "--graph", action="append", default=[], metavar="NAME", help="only this graph; repeatable"
    )
    parser.add_argument(
        "--keep",
        default="0.4,0.3",
        metavar="SHARE,...",
        help="shares of kept tokens that get a profile, besides all tokens (default: 0.4,0.3)",
    )
    parser.add_argument(
        "--no-plugins", action="store_true", help="build custom operators out of native layers"
    )
    parser.add_argument(
        "--check", action="store_true", help="only report which nodes the parser refuses"
    )
    parser.add_argument(
        "--weight-streaming",
        action="store_true",
        help="let weights stay in host memory; the plan cannot be captured in CUDA graphs",
    )
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="write times and memory of each graph built here"
    )
    parser.add_argument(
        "--workspace-gib", type=float, metavar="GIB", help="limit of scratch memory per layer"
    )
    parser.add_argument(
        "--optimization-level",
        type=int,
        metavar="0-5",
        help="how long the builder looks for kernels (default: the library's own)",
    )


def run(options: argparse.Namespace) -> int:
    from liveedit.engines.builder import build_bundle
    from liveedit.engines.plan import BuildOptions
    from liveedit.errors import UsageError

    if options.check:
        from liveedit.engines.check import check_bundle

        check_bundle(
            options.bundle,
            flavour=options.flavour,
            precision=options.precision,
            graphs=tuple(options.graph),
        )
        return 0
    try:
        keep = tuple(float(share) for share in options.keep.split(",") if share)
    except ValueError:
        raise UsageError(f"--keep takes shares such as 0.4,0.3, got {options.keep!r}") from None
    workspace = options.workspace_gib
    result = build_bundle(
        options.bundle,
        flavour=options.flavour,
        targets=tuple(target for target in options.target.split(",") if target),
        precision=options.precision,
        graphs=tuple(options.graph),
        keep=keep,
        plugins=not options.no_plugins,
        options=BuildOptions(
            weight_streaming=options.weight_streaming,
            workspace_bytes=None if workspace is None else int(workspace * 2**30),
            optimization_level=options.optimization_level,
        ),
    )
    if options.record:
        from liveedit.profiling.build_record import build_records, write_build_records

        command = shlex.join(["liveedit", *sys.argv[1:]])
        records = build_records(options.bundle, result.key, result.built, command)
        for path in write_build_records(options.record, records):
            print(path)
    print(
        f"plans {result.key}: {len(result.built)} built, {len(result.reused)} already there, in "
        f"{options.bundle / 'engines' / result.key}"
    )
    return 0
