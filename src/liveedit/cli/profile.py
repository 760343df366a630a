"""`liveedit profile`: where the time goes, and where it could go."""

from __future__ import annotations

import argparse
import importlib

SUBCOMMANDS = {
    "roofline": "bounds of a configuration on a GPU, from shapes alone",
    "layers": "time per layer against its roofline, and what to fix first",
    "nsys": "run under Nsight Systems: stages, kernels, gaps, a timeline page",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Each subcommand is a module `profile_NAME` beside this one."""
    subparsers = parser.add_subparsers(dest="profile_command", metavar="WHAT", required=True)
    for name, summary in SUBCOMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary)
        module = importlib.import_module(f"liveedit.cli.profile_{name}")
        module.add_arguments(sub)
        sub.set_defaults(profile_run=module.run)


def run(options: argparse.Namespace) -> int:
    return int(options.profile_run(options) or 0)
