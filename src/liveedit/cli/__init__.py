"""The `liveedit` command. Each subcommand is a module here, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from liveedit import __version__
from liveedit.errors import LiveEditError, system_refusal

COMMANDS: dict[str, str] = {
    "demo": "edit the shipped clip with the shipped bundle",
    "edit": "edit a video file",
    "inspect": "what a bundle holds and what it asks for",
    "build": "TensorRT plans of a bundle",
    "train": "one training stage of an editor",
    "export": "checkpoints to a bundle of ONNX graphs",
    "quantize": "INT8 or FP8 graphs in a bundle",
    "profile": "rooflines, traces and layer tables",
    "bench": "frames per second that say what they include; soak",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit code: 0, 1 or 2 on an error, 130 on Ctrl-C."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except LiveEditError as error:
        print(f"liveedit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("liveedit: stopped by Ctrl-C; nothing was left under the final name", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a path that cannot be read or written, a disk without room
        print(f"liveedit: {system_refusal(error)}", file=sys.stderr)
        return 1


def _run(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="liveedit", description="Streaming text-instructed video editing."
    )
    parser.add_argument("--version", action="version", version=f"liveedit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((a for a in args if not a.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary)
        if name == wanted:
            module = importlib.import_module(f"liveedit.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    options = parser.parse_args(args)
    return int(options.run(options) or 0)
