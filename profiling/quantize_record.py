"""A quantised bundle's ``report.json`` as records: the verdict, and each linear's sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liveedit.profiling.records import Better, Figure, Record, new_record, single, write_record

KINDS = ("quantize", "sensitivity")
_PAIRS: tuple[tuple[str, str, float], ...] = (  # report field, unit, factor
    ("named_colour", "%", 100),
    ("followed", "%", 100),
    ("region_db", "dB", 1),
    ("region_ssim", "SSIM", 1),
    ("background_db", "dB", 1),
    ("background_ssim", "SSIM", 1),
)


def quantize_records(
    report: Mapping[str, Any], model: str, footage: str, command: str
) -> list[Record]:
    """One record of the verdict and, after a search, one of the sensitivity."""
    verdict, origin = report["verdict"], report["calibration"]
    part = f"{model}-{report['format']}-from-{report['base']}"
    configuration = {
        "model": model,
        "format": report["format"],
        "base": report["base"],
        "stream": origin["stream"],
        "graph": origin["graph"],
        "calibration_clips": len(origin["clips"]),
        "calibration_passes": origin["passes"],
        "footage": footage,
        "left_out": sorted(report["left_out"]),
        "limits": verdict["limits"],
    }
    refused, unmeasured = verdict["refused"], verdict["speed"]["not_measured"]
    notes = [
        "verdict: " + ("refused: " + "; ".join(refused) if refused else "passed"),
        f"speed not measured: {unmeasured}" if unmeasured else "speed measured end to end",
    ]
    records = [new_record(KINDS[0], part, command, configuration, _verdict(report), notes=notes)]
    if report["sensitivity"]:
        figures = {
            s["layer"]: single(s["edited_db"], "dB", "higher") for s in report["sensitivity"]
        }
        records.append(new_record(KINDS[1], part, command, configuration, figures))
    return records


def _verdict(report: Mapping[str, Any]) -> dict[str, Figure]:
    verdict = report["verdict"]
    total = len(report["layers"]) + len(report["left_out"])
    figures = {
        "quantised_linears": single(len(report["layers"]), "linears"),
        "all_linears": single(total, "linears"),
        "weights_ratio": single(report["weights_ratio"], "x", "lower"),
        "agreement": _mean([q["agreement_db"] for q in verdict["quality"]], "dB", "higher"),
    }
    bench = verdict["benchmark"] or {}
    for name, unit, factor in _PAIRS:
        pair = bench.get(name)
        if pair is None:
            continue
        base, quantised = factor * pair["base"], factor * pair["quantised"]
        count = pair["count"]
        figures[f"{name}.base"] = Figure(value=base, unit=unit, better="higher", count=count)
        figures[f"{name}.quantised"] = Figure(
            value=quantised, unit=unit, better="higher", count=count
        )
        figures[f"{name}.loss"] = Figure(
            value=base - quantised, unit=unit, better="lower", count=count,
            spread=factor * pair["error"],
        )  # fmt: skip
    drift = verdict["drift"]
    if drift:
        last = 2 + (drift["chunks"] - 2) // drift["period"] * drift["period"]
        figures["drift.chunks"] = single(drift["chunks"], "chunks")
        ends = {}
        for which in ("base", "quantised"):
            curve = drift[which]
            figures[f"drift.{which}_chunk_2"] = single(curve[1], "dB", "higher")
            figures[f"drift.{which}_last"] = single(curve[last - 1], "dB", "higher")
            early = _mean(curve[1 : 1 + drift["period"]], "dB", "higher")
            late = _mean(curve[last - drift["period"] : last], "dB", "higher")
            figures[f"drift.{which}_first_period"] = early
            figures[f"drift.{which}_last_period"] = late
            ends[which] = early.value - late.value
        excess = ends["quantised"] - ends["base"]
        figures["drift.excess"] = single(excess, "dB", "lower")
    speed = verdict["speed"]
    if speed["base_fps"] and speed["quantised_fps"]:
        figures["fps.base"] = single(speed["base_fps"], "frame/s", "higher")
        figures["fps.quantised"] = single(speed["quantised_fps"], "frame/s", "higher")
    return figures


def _mean(values: list[float], unit: str, better: Better) -> Figure:
    return Figure(
        value=math.fsum(values) / max(len(values), 1),
        unit=unit,
        better=better,
        count=max(len(values), 1),
    )


def write_quantize_records(folder: Path, records: list[Record]) -> list[Path]:
    """``quantize-<part>.json`` and ``sensitivity-<part>.json``."""
    return [write_record(folder / f"{r.kind}-{r.part}.json", r) for r in records]
