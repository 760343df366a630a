"""What every command that runs a bundle's stream asks for. Needs no video library."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from liveedit.runtime.backends import BACKENDS
from liveedit.runtime.mask_cache import Mode


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs a bundle's stream."""
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="default: the small one that is shipped"
    )
    parser.add_argument(
        "--backend",
        default=BACKENDS[0],
        help=f"{', '.join(BACKENDS)} or auto; default: %(default)s",
    )
    parser.add_argument(
        "--precision", help="of the graphs; default: fp32 if it is there, else the only one"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: every core")
    parser.add_argument(
        "--mask-cache",
        choices=get_args(Mode),
        default="released",
        help="which passes compute only the tokens that change; default: %(default)s",
    )
    parser.add_argument(
        "--keep-ratio",
        type=float,
        default=0.3,
        metavar="X",
        help="share that such a pass computes; default: %(default)s",
    )
    parser.add_argument(
        "--token-budget",
        type=int,
        metavar="N",
        help="compute exactly N tokens in such a pass, so that no chunk on a GPU waits to learn "
        "how many; default: what the keep ratio makes of each chunk",
    )
