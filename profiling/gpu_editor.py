"""Parts of the GPU suite: the official editor with random weights, end to end.

One part for each window and codec: exported, plans built, every backend, mask cache off and
released at several keep ratios. What a part has when its time is up, it keeps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from liveedit.config import ModelConfig, TextEncoderConfig
from liveedit.errors import LiveEditError
from liveedit.profiling.bench_case import Case, figures, run_case
from liveedit.profiling.gpu_setting import Figures, Setting
from liveedit.profiling.records import distribution, single
from liveedit.runtime.mask_cache import Mode

Codec = Literal["wan", "taehv"]
# In order of value: the released editor's own ratio first.
MASKS: tuple[tuple[Mode, float], ...] = (
    ("off", 1),
    ("released", 0.3),
    ("released", 0.1),
    ("released", 0.5),
)
# Exporting six toy editors would take minutes: a dry run that has a bundle exports this one only.
DRY_EXPORT: tuple[Codec, int] = ("taehv", 12)
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx", "onnxruntime-cuda": None}


def editor(codec: Codec, window: int, time_s: float) -> Callable[[Setting], Figures]:
    """The editor with ``codec`` whose attention sees ``window`` latent frames.

    Args:
        time_s: when it is up, no other measurement begins.
    """

    def run(s: Setting) -> Figures:
        end = time.monotonic() + time_s
        out: Figures = {}
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            if s.dry and s.bundle is not None and (codec, window) != DRY_EXPORT:
                bundle = s.bundle
            else:
                _export(s, codec, window, bundle)
            for name, flavour in {"onnxruntime": None}.items() if s.dry else FLAVOURS.items():
                try:
                    if flavour:
                        _build(bundle, flavour, end - time.monotonic())
                    _measure(s, bundle, name, end, out)
                except LiveEditError as error:
                    print(f"{name}: {error}", flush=True)
        if not out:
            raise LiveEditError("no backend ran; what each said is above")
        return out

    return run


def _export(s: Setting, codec: Codec, window: int, bundle: Path) -> None:
    from liveedit.export.bundle_writer import write_bundle
    from liveedit.export.sources import random_sources

    model = ModelConfig(
        name="toy" if s.dry else "liveedit-1.3b",
        dit=s.dit,
        text=TextEncoderConfig(dim=s.dit.text_dim),
        wan_vae=s.wan if codec == "wan" else None,
        taehv=s.taehv if codec == "taehv" else None,
    )
    stream = replace(s.stream, local_attn_size=window)
    weights, tokenizer, notes = random_sources(model, 0)
    weights.pop("text_encoder")  # 5.7 G parameters that no chunk runs
    precision = "fp32" if s.dry else "fp16"
    write_bundle(bundle, model, stream, weights, tokenizer, precisions=[precision], notes=notes)


def _build(bundle: Path, flavour: str, time_s: float) -> None:
    """Plans for this GPU, in a process of its own.

    Raises:
        LiveEditError: it failed, with the last it said; or it took longer than ``time_s``.
    """
    keeps = ",".join(f"{keep:g}" for mask, keep in MASKS if mask != "off")
    command = [sys.executable, "-m", "liveedit", "build", str(bundle), "--flavour", flavour]
    try:
        done = subprocess.run(
            [*command, "--keep", keeps], capture_output=True, text=True, timeout=max(time_s, 0)
        )
    except subprocess.TimeoutExpired:
        raise LiveEditError("no time was left to build its plans") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LiveEditError(f"liveedit build: {said[-1] if said else done.returncode}")


def _measure(s: Setting, bundle: Path, backend: str, end: float, out: Figures) -> None:
    """Add to ``out`` what one backend does, mask by mask, until ``end``.

    Raises:
        LiveEditError: the backend cannot run, or no time is left.
    """
    for mask, keep in MASKS[:2] if s.dry else MASKS:
        if time.monotonic() > end:
            raise LiveEditError(f"no time was left from mask cache {mask} {keep:g} on")
        label = f"{backend}.{mask}" + ("" if mask == "off" else f"-{keep:g}")
        chunks, warmup = (2, 1) if s.dry else (30, None)
        case = Case(
            bundle=bundle, backend=backend, mask=mask, keep=keep, chunks=chunks, warmup=warmup
        )
        result = run_case(case)
        out[f"{label}.fps"] = single(result.fps, "frame/s", "higher")
        out[f"{label}.chunk_ms"] = distribution([c.ms for c in result.chunks], "ms", "lower")
        out[f"{label}.realised_keep"] = single(result.realised_keep, "share of tokens")
        # The device's time of each stage, from a run of its own that waits for it.
        stages = figures(run_case(replace(case, wait_stages=True, chunks=2 if s.dry else 5)))
        out |= {
            f"{label}.{name}": figure
            for name, figure in stages.items()
            if name.startswith(("stage_ms.", "dit_ms"))
        }
