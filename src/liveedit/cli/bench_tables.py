"""`liveedit bench tables`: renew the measured tables of the docs."""

from __future__ import annotations

import argparse
from pathlib import Path

from liveedit.errors import UsageError
from liveedit.profiling.doc_tables import fill, fill_file
from liveedit.profiling.records import read_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("documents", type=Path, nargs="+", metavar="FILE.md")
    parser.add_argument(
        "--records", type=Path, default=Path("profiling/records"), help="default: %(default)s"
    )
    parser.add_argument("--check", action="store_true", help="fail when a table is out of date")


def run(options: argparse.Namespace) -> int:
    records = read_folder(options.records)
    for path in options.documents:
        if not path.is_file():
            raise UsageError(f"no document {path}")
        if options.check:
            text = path.read_text()
            if fill(text, records) != text:
                raise UsageError(f"{path} is out of date; run: liveedit bench tables {path}")
        elif fill_file(path, records):
            print(f"renewed {path}")
    return 0
