"""`liveedit train`: one stage of the editor's training, or its codec."""

from __future__ import annotations

import argparse

from liveedit.errors import UsageError

try:
    from liveedit.distill import codec, train
    from liveedit.distill.presets import Stage
except ImportError as error:
    raise UsageError(
        f"training needs {error.name}, which is not installed: pip install 'liveedit-trt[train]'"
    ) from None

STAGES: dict[Stage, str] = {
    "foundation": "stage 1: full attention, every frame at once; the teacher",
    "causal": "stage 2: block after block, as a stream sees a clip",
    "dmd": "stage 3: few steps, on the student's own rollouts, towards the teacher",
}
_TOGETHER = """\
Several processes, or GPUs, train together under torchrun:
  torchrun --nproc-per-node 8 -m liveedit train STAGE ...
A run is saved as it goes; the same command goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(metavar="STAGE", required=True)
    for stage, summary in STAGES.items():
        sub = stages.add_parser(
            stage,
            help=summary,
            description=summary,
            epilog=_TOGETHER,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        train.add_arguments(sub, stage)
        sub.set_defaults(train=train.main)
    sub = stages.add_parser("codec", help="the patch codec of the default editor")
    codec.add_arguments(sub)
    sub.set_defaults(train=codec.main)


def run(options: argparse.Namespace) -> int:
    return int(options.train(options))
