"""The GPU of this machine, asked of the driver alone."""

from __future__ import annotations

import ctypes


def compute_capability() -> str | None:
    """The first GPU's compute capability, such as ``sm89``, or None without a GPU or driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    for value, attribute in ((major, 75), (minor, 76)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"sm{major.value}{minor.value}"


def driver_version() -> str | None:
    """The CUDA version the driver implements, such as ``13.0``, or None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    value = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(value)):
        return None
    return f"{value.value // 1000}.{value.value % 1000 // 10}"
