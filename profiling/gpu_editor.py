"""Parts of the GPU suite: the official editor with random weights, end to end.

One part for each window and codec: exported, plans built, every backend, mask cache off and
released at several keep ratios, serially, prewarmed and uncaptured, what layers take, and passes
beside the PyTorch reference. What a part has when its time is up, it keeps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from liveedit.bundle import read_manifest
from liveedit.config import ModelConfig, TextEncoderConfig
from liveedit.engines import flavour as flavours
from liveedit.engines.gpu import compute_capability
from liveedit.errors import LiveEditError
from liveedit.profiling import host_overhead, pass_parity
from liveedit.profiling.bench_case import Case, figures, run_case
from liveedit.profiling.gpu_setting import Figures, Setting
from liveedit.profiling.records import read_record, single
from liveedit.runtime.backend import Frames
from liveedit.runtime.mask_cache import MaskCachePolicy, Mode

if TYPE_CHECKING:
    from torch import Tensor

    from liveedit.export.sources import Weights

Codec = Literal["wan", "taehv"]
# In order of value: the released editor's own ratio first.
MASKS: tuple[tuple[Mode, float], ...] = (
    ("off", 1),
    ("released", 0.3),
    ("released", 0.1),
    ("released", 0.5),
)
KEEPS = tuple(keep for mask, keep in MASKS if mask != "off")  # that get a profile in plans
VARIED = MASKS[1]  # measured serially, prewarmed and without CUDA graphs, too
PARITY_S = 120  # left at least, before passes are compared
DETAILED = 12  # window of the editors whose layers are timed and passes compared
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
        backends = runnable(s)
        out: Figures = {}
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            weights: Mapping[str, Tensor] | None = None
            if s.dry and s.bundle is not None and (codec, window) != DRY_EXPORT:
                bundle = s.bundle
            else:
                weights = export_editor(s, codec, window, bundle)["dit"]
            parity = Parity(s, bundle, weights) if window == DETAILED and weights else None
            shown: dict[str, Frames] = {}
            for name, flavour in backends.items():
                with attempt(name):
                    if flavour:
                        build_plans(bundle, flavour, end)
                    measure(s, bundle, name, end, out, shown)
                    if window == DETAILED and (flavour or s.dry):
                        time_layers(bundle, name, end, out)
                    if parity and time.monotonic() + PARITY_S < end:
                        out |= parity.errors(name)
            return some(out) | _host(s, bundle)

    return run


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """What cannot go on says so, and costs only itself."""
    try:
        yield
    except LiveEditError as error:
        print(f"{what}: {error}", flush=True)


def some(measured: Figures) -> Figures:
    """What the attempts measured.

    Raises:
        LiveEditError: nothing.
    """
    if not measured:
        raise LiveEditError("no backend ran; what each said is above")
    return measured


def runnable(s: Setting) -> dict[str, str | None]:
    """Backends worth an export, which takes a minute, and the flavour of the plans they need.

    What the others lack is printed.

    Raises:
        LiveEditError: none can run here.
    """
    if s.dry:
        return {"onnxruntime": None}
    present, found = compute_capability(), dict[str, str | None]()
    for name, flavour in FLAVOURS.items():
        try:
            if flavour:
                chosen = flavours.resolve(flavour)
                flavours.load(chosen)
                flavours.check_targets(chosen, (present,) if present else (), present)
            else:
                from liveedit.runtime.onnx_device import OnnxCudaLoader

                OnnxCudaLoader()
            found[name] = flavour
        except (LiveEditError, ImportError) as error:
            print(f"{name}: {error}", flush=True)
    if not found:
        raise LiveEditError("no backend can run here; what each lacks is above")
    return found


class Parity:
    """Passes of every backend against the PyTorch reference, which runs once."""

    def __init__(self, s: Setting, bundle: Path, weights: Mapping[str, Tensor]) -> None:
        self._s, self._bundle, self._weights = s, bundle, weights
        self._manifest = read_manifest(bundle)
        self._precision = min(self._manifest.graphs)
        self._inputs = pass_parity.random_inputs(self._manifest)
        self._exact: list[pass_parity.Array] | None = None

    def errors(self, backend: str) -> Figures:
        """Of one backend, and the first time of PyTorch in the graphs' precision too.

        Raises:
            LiveEditError: the backend cannot run.
        """
        out: Figures = {}
        if self._exact is None:
            self._exact = self._reference("float32")
            own = self._reference("float16") if self._precision == "fp16" else self._exact
            out |= pass_parity.errors("torch", own, self._exact, self._manifest)
        got = pass_parity.backend_passes(self._bundle, backend, self._precision, self._inputs)
        return out | pass_parity.errors(backend, got, self._exact, self._manifest)

    def _reference(self, dtype: str) -> list[pass_parity.Array]:
        return pass_parity.reference_passes(
            self._manifest, self._weights, self._inputs, device=self._s.device, dtype=dtype
        )


def export_editor(s: Setting, codec: Codec, window: int, bundle: Path) -> Weights:
    """Write the bundle, its weights from a seed, and return them."""
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
    return weights


def build_plans(
    bundle: Path, flavour: str, end: float, precision: str = "fp16", *, plugins: bool = True
) -> None:
    """Plans for this GPU.

    Raises:
        LiveEditError: they cannot be built, or ``end`` came first.
    """
    keeps = ",".join(f"{keep:g}" for keep in KEEPS)
    arguments = ["build", str(bundle), "--flavour", flavour, "--precision", precision]
    native = [] if plugins else ["--no-plugins"]
    _command([*arguments, "--keep", keeps, *native], end)


def time_layers(bundle: Path, backend: str, end: float, out: Figures) -> None:
    """Add what each class of layers takes in a full pass."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "layers.json"
        arguments = ["profile", "layers", "--bundle", str(bundle), "--backend", backend]
        _command([*arguments, "--runs", "2", "--out", str(record)], end)
        figures = read_record(record).figures
    out |= {f"{backend}.layers.{n}": f for n, f in figures.items() if n.startswith("ms.")}


def _command(arguments: list[str], end: float) -> None:
    """``liveedit ...`` in a process of its own.

    Raises:
        LiveEditError: it failed, with the last it said; or ``end`` came first.
    """
    command = [sys.executable, "-m", "liveedit", *arguments]
    left_s = max(end - time.monotonic(), 0)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left_s)
    except subprocess.TimeoutExpired:
        raise LiveEditError(f"no time was left for liveedit {arguments[0]}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LiveEditError(f"liveedit {arguments[0]}: {said[-1] if said else done.returncode}")


def _host(s: Setting, bundle: Path) -> Figures:
    """The host's share of a chunk on this machine, without an engine."""
    precision = min(read_manifest(bundle).graphs)
    host = host_overhead.measure(
        bundle, MaskCachePolicy(), precision=precision, chunks=2 if s.dry else 60
    )
    return host_overhead.figures(host)


def measure(
    s: Setting,
    bundle: Path,
    backend: str,
    end: float,
    out: Figures,
    shown: dict[str, Frames],
    precision: str | None = None,
) -> None:
    """Add to ``out`` what one backend does, mask by mask, until ``end``.

    Args:
        shown: what backends made of the first and the last chunk, which the first of them is the
            measure of; this one's are added.
        precision: where it is not that of the plans, or the bundle's usual one; then in the names.

    Raises:
        LiveEditError: the backend cannot run, or no time is left.
    """
    for mask, keep in MASKS[:2] if s.dry else MASKS:
        if time.monotonic() > end:
            raise LiveEditError(f"no time was left from mask cache {mask} {keep:g} on")
        label = ".".join(filter(None, (backend, precision, mask)))
        label += "" if mask == "off" else f"-{keep:g}"
        chunks, warmup = (2, 1) if s.dry else (30, None)
        case = Case(
            bundle=bundle, backend=backend, precision=precision, mask=mask, keep=keep,
            chunks=chunks, warmup=warmup,
        )  # fmt: skip
        result = run_case(case)
        measured = figures(result)
        kept = ("fps", "chunk_ms", "submit_ms", "realised_keep", "memory_measured_device")
        out |= {f"{label}.{name}": measured[name] for name in kept if name in measured}
        if mask == "off":
            edited = np.concatenate([result.first_frames, result.last_frames])
            out |= differences(backend, edited, shown)
        # The device's time of each stage, from a run of its own that waits for it.
        stages = figures(run_case(replace(case, wait_stages=True, chunks=2 if s.dry else 5)))
        out |= {
            f"{label}.{name}": figure
            for name, figure in stages.items()
            if name.startswith(("stage_ms.", "dit_ms"))
        }
        if (mask, keep) == VARIED and precision is None:
            out |= _otherwise(label, replace(case, chunks=2 if s.dry else 10))


def differences(backend: str, frames: Frames, shown: dict[str, Frames]) -> Figures:
    """How uint8 frames differ from those of the first backend; they are added to ``shown``."""
    shown[backend] = frames
    first = next(iter(shown))
    if first == backend:
        return {}
    difference = np.abs(frames.astype(np.int16) - shown[first])
    return {
        f"{backend}.largest_difference_from_{first}": single(difference.max(), "of 255", "lower"),
        f"{backend}.mean_difference_from_{first}": single(difference.mean(), "of 255", "lower"),
    }


def _otherwise(label: str, case: Case) -> Figures:
    """One stream instead of three, captured on the way or when it is opened; and no captures.

    One chunk at a time, so that the first one is returned as soon as it is done.
    """
    out: Figures = {}
    for prewarm in (False, True):
        got = figures(run_case(replace(case, overlap=False, prewarm=prewarm)))
        start = f"{label}.{'prewarmed' if prewarm else 'cold'}"
        for name in ("open_ms", "first_chunk_ms", "slowest_warmup_chunk_ms"):
            out[f"{start}.{name}"] = got[name]
        out[f"{label}.serial.chunk_ms"] = got["chunk_ms"]
    uncaptured = figures(run_case(replace(case, cuda_graphs=False)))
    out[f"{label}.no-graphs.chunk_ms"] = uncaptured["chunk_ms"]
    return out
