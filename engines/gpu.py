"""The GPU of this machine, asked of the driver alone."""

from __future__ import annotations

import ctypes


def compute_capability() -> str | None:
    """The first GPU's compute capability, such as ``sm89``, or None without a GPU or driver."""
    driver, device, major, minor = _driver(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    for value, attribute in ((major, 75), (minor, 76)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"sm{major.value}{minor.value}"


def name_and_driver() -> tuple[str, str] | None:
    """The first GPU's name and the CUDA version of its driver: ``NVIDIA L40S``, ``13.0``."""
    driver, device, version = _driver(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetName(name, len(name), device):
        return None
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return name.value.decode(), f"{version.value // 1000}.{version.value % 1000 // 10}"


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver
