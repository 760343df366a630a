"""A stream is opened with plans of which one byte is changed: TensorRT must not see any of it."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from bundle_factory import make_manifest

from liveedit.bundle import MANIFEST, add_files, read_manifest, write_manifest
from liveedit.engines import flavour, plugin_library, verify
from liveedit.engines.fuzz import unbuilt
from liveedit.engines.plan import BuildInputs, PlanSet, as_entry, here
from liveedit.errors import LiveEditError
from liveedit.runtime import StreamEditor, cuda_device
from liveedit.runtime.host_device import HostDevice

CHANGES = 300


class Reached(Exception):
    """TensorRT was called."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Graphs, weights and plans of random bytes, and a plugin library beside them."""
    root, source = tmp_path / "bundle", random.Random(0)
    manifest = make_manifest(root)
    library = tmp_path / "plugins.so"
    library.write_bytes(source.randbytes(300))
    specs = manifest.graphs["fp32"]
    onnx = [*(spec.file for spec in specs.values()), "fp32/dit.weights"]
    plans = {name: f"engines/k/{name}.plan" for name in specs}
    for name in (*onnx, *plans.values()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(source.randbytes(300))
    manifest = add_files(root, manifest, [*onnx, *plans.values()])
    inputs = BuildInputs(
        flavour="tensorrt-rtx",
        version="1.0",
        platform=here(),
        targets=("sm89",),
        precision="fp32",
        onnx={name: manifest.files[name].sha256 for name in onnx},
        plugins=plugin_library._choice("library", library).identity,
        profiles=(manifest.stream.block_seq_length,),
    )
    built = {name: unbuilt(spec, plans[name]) for name, spec in specs.items()}
    entry = as_entry(PlanSet(inputs=inputs, graphs=built))
    write_manifest(root, replace(manifest, plans={inputs.key: entry}))
    return root


@pytest.fixture(autouse=True)
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that the plans were made for, with a TensorRT that must not be called."""

    def reached(*_: Any) -> Any:
        raise Reached

    trt = SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="1.0",
        ILogger=type("ILogger", (), {}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=reached),
        get_plugin_registry=reached,
    )
    monkeypatch.setattr(flavour, "installed", lambda _: True)
    monkeypatch.setattr(flavour, "load", lambda _: trt)
    monkeypatch.setattr(verify, "compute_capability", lambda: "sm89")
    monkeypatch.setattr(
        verify,
        "find_plugins",
        lambda: plugin_library._choice("library", bundle.parent / "plugins.so"),
    )
    monkeypatch.setattr(cuda_device, "CudaDevice", lambda: HostDevice(None))


def open_stream(bundle: Path) -> None:
    StreamEditor.open(bundle, backend="tensorrt-rtx").close()


def test_whole_files_reach_tensorrt(bundle: Path) -> None:
    with pytest.raises(Reached):
        open_stream(bundle)


def test_one_changed_byte_anywhere_does_not(bundle: Path) -> None:
    source = random.Random(1)
    names = [MANIFEST, *read_manifest(bundle).files, "../plugins.so"]
    kinds = set()
    for _ in range(CHANGES):
        path = bundle / source.choice(names)
        data = path.read_bytes()
        position = source.randrange(len(data))
        changed = bytes([data[position] ^ (1 << source.randrange(8))])
        path.write_bytes(data[:position] + changed + data[position + 1 :])
        with pytest.raises(LiveEditError):
            open_stream(bundle)
        path.write_bytes(data)
        kinds.add(path.suffix)
    assert kinds == {".json", ".onnx", ".weights", ".plan", ".so"}
