"""Where a figure was measured: machine, clocks, driver, versions, commit."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liveedit import __version__

PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "tensorrt_rtx",
    "cuda-python",
)


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One card as the driver describes it. Clocks in MHz, memory in bytes, power in watts."""

    name: str
    compute_capability: str
    memory_bytes: int
    sm_clock_mhz: int
    sm_clock_max_mhz: int
    memory_clock_mhz: int
    power_limit_w: float


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything around a measurement that could change it."""

    cpu: str
    cpu_cores: int
    memory_bytes: int
    os: str
    python: str
    liveedit: str
    commit: str  # "" outside a checkout; ends in "+" when files differ from it
    threads: int  # OMP_NUM_THREADS; 0 where it is not set
    driver: str = ""
    cuda: str = ""
    gpus: tuple[GpuState, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)


def read_environment() -> Environment:
    """Describe this process's machine. What cannot be read is left empty, never guessed."""
    driver, cuda, gpus = _nvml()
    return Environment(
        cpu=_cpu_name(),
        cpu_cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        liveedit=__version__,
        commit=_commit(),
        threads=int(os.environ.get("OMP_NUM_THREADS") or 0),
        driver=driver,
        cuda=cuda,
        gpus=gpus,
        packages=_packages(),
    )


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


@functools.cache
def _commit() -> str:
    root = Path(__file__).resolve().parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head[:12] + ("+" if changed else "")


def _git(root: Path, *args: str) -> str:
    out = subprocess.run(
        ["git", "-C", root, *args], check=True, capture_output=True, text=True, timeout=20
    )
    return out.stdout.strip()


def _nvml() -> tuple[str, str, tuple[GpuState, ...]]:
    """Driver, CUDA version and cards through NVML; empty without the package or a driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "", "", ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return "", "", ()
    try:
        version = int(nvml.nvmlSystemGetCudaDriverVersion())
        cards = tuple(_card(nvml, i) for i in range(nvml.nvmlDeviceGetCount()))
        driver = str(nvml.nvmlSystemGetDriverVersion())
        return driver, f"{version // 1000}.{version % 1000 // 10}", cards
    finally:
        nvml.nvmlShutdown()


def _card(nvml: Any, index: int) -> GpuState:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)

    def read(call: Any, *args: Any) -> int:
        try:
            return int(call(handle, *args))
        except nvml.NVMLError:  # not supported on this card
            return 0

    return GpuState(
        name=str(nvml.nvmlDeviceGetName(handle)),
        compute_capability=f"{major}.{minor}",
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        sm_clock_mhz=read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        sm_clock_max_mhz=read(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        power_limit_w=read(nvml.nvmlDeviceGetPowerManagementLimit) / 1000,
    )
