"""Every figure of a GPU suite's folder as one table, and how it compares with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from liveedit.profiling.records import Figure, Record, read_folder
from liveedit.profiling.text_table import text_table

CHUNK = ".off.chunk_ms"  # of the figures that are compared: the same passes as the reference's


def summary(out: Path) -> str:
    """The table: what was measured, then speed over PyTorch."""
    records = read_folder(out)
    rows = [
        (r.part, name, f"{f.value:.4g}", f"{f.p99:.4g}" if f.p99 is not None else "", f.unit)
        for r in records
        for name, f in r.figures.items()
    ]
    rows += [(part, name, f"{x:.2f}", "", "x") for part, name, x in speedups(records)]
    return text_table(("part", "figure", "value", "p99", "unit"), rows, left=(0, 1, 4))


def speedups(records: list[Record]) -> Iterator[tuple[str, str, float]]:
    """Part, what it is, and how many times as fast as PyTorch, for each editor, mask cache off.

    PyTorch's chunk is the sum of its parts: a full pass times the passes of a chunk, and the codec,
    eager, times the latent frames. Nothing is added for what lies between them.
    """
    parts = {r.part: r for r in records}
    codecs = parts.get("codecs")
    for part, record in parts.items():
        editor, _, rest = part.partition("-w")
        if editor not in ("editor", "eight-bit") or codecs is None:
            continue
        window, _, codec = rest.partition("-")
        stream = record.configuration["stream"]
        num_passes = len(stream["denoising_step_list"]) + 1  # the clean pass is the last
        for mode in ("eager", "compile"):
            passes = _figures(parts.get(f"reference-{mode}"))
            one, steps = passes.get(f"w{window}.pass_ms"), _codec_ms(codecs, codec)
            if one is None or steps is None:
                continue
            reference_ms = num_passes * one.value + stream["num_frame_per_block"] * steps
            for name, figure in record.figures.items():
                if name.endswith(CHUNK):
                    label = f"{name.removesuffix(CHUNK)}.over_torch_{mode}"
                    yield part, label, reference_ms / figure.value


def _figures(record: Record | None) -> Mapping[str, Figure]:
    return {} if record is None else record.figures


def _codec_ms(codecs: Record, codec: str) -> float | None:
    """To encode and decode one latent frame."""
    names = [f"{codec}_{direction}_ms_per_latent" for direction in ("encode", "decode")]
    if any(name not in codecs.figures for name in names):
        return None
    return sum(codecs.figures[name].value for name in names)
