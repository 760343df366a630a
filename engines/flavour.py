"""TensorRT or TensorRT-RTX: the only module that knows which one is used.

Both have nearly the same Python API. TensorRT builds for the GPU it runs on; TensorRT-RTX builds
ahead of time for named GPUs, with no GPU present. Nothing is imported before ``load``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from liveedit.errors import BackendError, UsageError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]
RTX_SONAME = "libtensorrt_rtx.so.1"


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One of the two libraries. ``targets`` is empty where plans are for the present GPU only."""

    name: FlavourName
    module: str
    package: str
    targets: tuple[str, ...]
    has_timing_cache: bool


FLAVOURS: dict[str, Flavour] = {
    "tensorrt": Flavour(
        name="tensorrt",
        module="tensorrt",
        package="tensorrt-cu13",
        targets=(),
        has_timing_cache=True,
    ),
    "tensorrt-rtx": Flavour(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        package="tensorrt-rtx",
        targets=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
        has_timing_cache=False,
    ),
}


def installed(flavour: Flavour) -> bool:
    """Whether the package is there. Says nothing about whether its library loads."""
    return importlib.util.find_spec(flavour.module) is not None


def resolve(name: str) -> Flavour:
    """The flavour of that name; ``auto`` takes TensorRT if it is installed, else TensorRT-RTX.

    Raises:
        UsageError: no flavour has that name.
        BackendError: the package of the flavour is not installed.
    """
    if name == "auto":
        for flavour in FLAVOURS.values():
            if installed(flavour):
                return flavour
        raise BackendError(
            "neither TensorRT nor TensorRT-RTX is installed. For GeForce and RTX GPUs, and to "
            f"build without a GPU: pip install {FLAVOURS['tensorrt-rtx'].package}. For data centre "
            f"GPUs and Jetson: pip install {FLAVOURS['tensorrt'].package}."
        )
    if name not in FLAVOURS:
        raise UsageError(f"no TensorRT flavour {name!r}; allowed: auto, {', '.join(FLAVOURS)}")
    flavour = FLAVOURS[name]
    if not installed(flavour):
        raise BackendError(
            f"flavour {name} needs the Python module {flavour.module}, which is not installed. "
            f"Run: pip install {flavour.package}"
        )
    return flavour


def load(flavour: Flavour) -> ModuleType:
    """Import the library's Python module.

    Raises:
        BackendError: not installed, or its native library does not load.
    """
    try:
        return importlib.import_module(flavour.module)
    except ImportError as error:
        raise BackendError(
            f"{flavour.module} does not load: {error}. Run: pip install --force-reinstall "
            f"{flavour.package}"
        ) from None


def version(flavour: Flavour) -> str:
    """The full version of the library, as plans record it."""
    return str(load(flavour).__version__)


def check_targets(flavour: Flavour, targets: tuple[str, ...], present: str | None) -> None:
    """Refuse GPU targets this flavour cannot build for.

    Args:
        targets: compute capabilities such as ``sm89``.
        present: compute capability of the GPU here, or None without a GPU.
    """
    if not targets:
        raise UsageError("no target is named; give at least one, for example --target sm89")
    allowed = flavour.targets or ((present,) if present else ())
    for target in targets:
        if target in allowed:
            continue
        if flavour.targets:
            raise UsageError(
                f"{flavour.name} does not build for {target}; it builds for "
                f"{', '.join(flavour.targets)}"
            )
        if present is None:
            raise BackendError(
                f"{flavour.name} builds for the GPU it runs on, and there is none here. Build on "
                "the machine that will run the plan, or use --flavour tensorrt-rtx."
            )
        raise UsageError(
            f"{flavour.name} builds for the GPU it runs on, {present}; it cannot build for {target}"
        )


def context_settings(trt: Any, engine: Any) -> Any:
    """What ``create_execution_context`` takes where activation memory is the caller's.

    TensorRT-RTX compiles kernels on the device. By default it runs a slower one until the right
    one is compiled in the background, and a captured graph would keep that; so it compiles first.
    Contexts of one engine share what was compiled.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is None:
        return strategy
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
    config.set_runtime_cache(config.create_runtime_cache())
    return config


def child_environment(flavour: Flavour, private: Path) -> dict[str, str]:
    """Environment of a child process that calls the library, Polygraphy's too.

    The RTX parser opens the unversioned name ``libtensorrt_rtx.so``, which the wheel does not ship;
    a process that meets a plugin node without it is aborted. The loader reads LD_LIBRARY_PATH only
    when a process starts, hence a link in ``private``, a directory of ours, named to the child.
    """
    environment = dict(os.environ)
    if flavour.name != "tensorrt-rtx":
        return environment
    environment["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    library = _rtx_library()
    if library is None:
        return environment  # a system installation, with its own links
    link = private / "libtensorrt_rtx.so"
    link.symlink_to(library)
    paths = [str(private), str(library.parent), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(p for p in paths if p)
    return environment


def _rtx_library() -> Path | None:
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / RTX_SONAME
        if path.is_file():
            return path.resolve()
    return None
