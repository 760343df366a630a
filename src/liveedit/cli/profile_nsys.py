"""`liveedit profile nsys`: a capture of the steady state as tables, JSON and a timeline page."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from liveedit.errors import UsageError
from liveedit.profiling.nsys_convert import convert
from liveedit.profiling.nsys_report import text
from liveedit.profiling.nsys_run import check_version, command_line, find_nsys, profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="database",
        type=Path,
        metavar="FILE.sqlite",
        help="convert an existing export instead of running nsys",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("liveedit-nsys"), help="prefix of what is written"
    )
    parser.add_argument(
        "--capture",
        choices=("steady", "all"),
        default="steady",
        help="steady: only the chunks after the warm-up (default)",
    )
    parser.add_argument("--print-command", action="store_true", help="show the nsys call and stop")
    parser.add_argument(
        "args",
        nargs=argparse.REMAINDER,
        metavar="-- ARGS",
        help="the liveedit command to profile (default: bench)",
    )


def run(options: argparse.Namespace) -> int:
    args = [a for i, a in enumerate(options.args) if i or a != "--"] or ["bench"]
    out: Path = options.out
    if options.database is not None:
        if options.args:
            raise UsageError("--from converts a file; it takes no command to run")
        database = options.database
    else:
        nsys = find_nsys()
        check_version(nsys)
        if options.print_command:
            print(shlex.join(command_line(nsys, out, args, options.capture)))
            return 0
        out.parent.mkdir(parents=True, exist_ok=True)
        database = profile(nsys, out, args, options.capture)
    print(text(convert(database, out)))
    print(f"\nwrote {out}.json and {out}.html")
    return 0
