"""Ranges as a real NVTX tool sees them: a small injection library stands in for Nsight."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from liveedit.profiling.nvtx_ranges import format_text, parse_text, tracer
from liveedit.runtime.tracing import NULL_TRACER

SOURCE = Path(__file__).with_name("nvtx_injection.c")


def cuda_include() -> Path | None:
    """The toolkit's headers, if there is a toolkit."""
    nvcc = shutil.which("nvcc")
    roots = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for root in [*roots, Path("/usr/local/cuda")]:
        for include in (root / "include", root / "targets/x86_64-linux/include"):
            if (include / "nvtx3/nvToolsExt.h").is_file():
                return include
    return None


@pytest.fixture(scope="session")
def injection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include, compiler = cuda_include(), shutil.which("cc") or shutil.which("gcc")
    if include is None or compiler is None:
        pytest.skip("no CUDA toolkit headers or no C compiler to build an NVTX tool with")
    library = tmp_path_factory.mktemp("nvtx") / "libinjection.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", f"-I{include}", "-o", library, SOURCE, "-ldl"],
        check=True,
    )
    return library


def traced(injection: Path, tmp_path: Path, code: str) -> list[tuple[int, str, str]]:
    """Run Python code under the tool. Returns (depth, domain, text) per pushed range."""
    log = tmp_path / "nvtx.log"
    env = {**os.environ, "NVTX_INJECTION64_PATH": str(injection), "NVTX_LOG": str(log)}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    pushes = [(int(x[1]), x[2], x[3]) for x in lines if x[0] == "push"]
    pops = [int(x[1]) for x in lines if x[0] == "pop"]
    assert len(pushes) == len(pops)
    assert pops[-1] == 0
    return pushes


def test_ranges_nest_and_carry_their_fields(injection: Path, tmp_path: Path) -> None:
    code = """
from liveedit.profiling.nvtx_ranges import tracer
t = tracer()
with t.range("stream", backend="onnxruntime-cpu"):
    for c in range(2):
        with t.range("chunk", index=c):
            with t.range("encode"):
                pass
            for step in range(4):
                kind = "pruned" if c and step in (1, 2) else "full"
                with t.range("pass", kind=kind, step=step, kept=24, kv=168):
                    pass
"""
    got = traced(injection, tmp_path, code)
    assert {domain for _, domain, _ in got} == {"liveedit"}
    assert got[:4] == [
        (0, "liveedit", "stream backend=onnxruntime-cpu"),
        (1, "liveedit", "chunk index=0"),
        (2, "liveedit", "encode"),
        (2, "liveedit", "pass kind=full step=0 kept=24 kv=168"),
    ]
    passes = [parse_text(text)[1]["kind"] for _, _, text in got if text.startswith("pass")]
    assert passes.count("full") == 6
    assert passes.count("pruned") == 2


def test_a_range_closes_when_its_block_raises(injection: Path, tmp_path: Path) -> None:
    code = """
from liveedit.profiling.nvtx_ranges import tracer
t = tracer()
try:
    with t.range("chunk", index=0):
        raise RuntimeError
except RuntimeError:
    pass
with t.range("chunk", index=1):
    pass
"""
    assert [depth for depth, _, _ in traced(injection, tmp_path, code)] == [0, 0]


def test_no_tool_means_the_null_tracer() -> None:
    assert tracer() is NULL_TRACER
    with NULL_TRACER.range("chunk", index=1) as got, NULL_TRACER.range("pass"):
        assert got is None


def test_no_package_means_the_null_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert tracer() is NULL_TRACER


def test_runtime_does_not_import_profiling() -> None:
    code = "import sys, liveedit.runtime.tracing; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env
    )
    loaded = out.stdout.split()
    assert "liveedit.runtime.tracing" in loaded
    assert not [m for m in loaded if m == "nvtx" or m.startswith("liveedit.profiling")]


def test_text_round_trip() -> None:
    text = format_text("pass", kind="pruned", step=1, kept=24, kv=168)
    assert parse_text(text) == (
        "pass",
        {"kind": "pruned", "step": "1", "kept": "24", "kv": "168"},
    )
    assert parse_text("commit") == ("commit", {})


def test_ranges_of_a_real_stream(injection: Path, tmp_path: Path, micro_bundle: Path) -> None:
    code = f"""
import numpy as np
from liveedit.profiling.nvtx_ranges import tracer
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.stream import StreamEditor
with StreamEditor.open({str(micro_bundle)!r}, backend="null", precision="fp32",
                       mask_cache=MaskCachePolicy(keep_ratio=0.3), tracer=tracer()) as editor:
    editor.set_prompt("a")
    frames = np.zeros((36, editor.height_px, editor.width_px, 3), dtype=np.uint8)
    assert len(editor.push(frames)) == 3
"""
    got = [(depth, *parse_text(text)) for depth, _, text in traced(injection, tmp_path, code)]
    chunks = [fields["index"] for _, name, fields in got if name == "chunk"]
    assert chunks == ["0", "1", "2"]
    passes = [(depth, fields) for depth, name, fields in got if name == "pass"]
    assert [f["kind"] for _, f in passes] == [
        *("full", "full", "full", "full", "clean"),
        *("full", "pruned", "pruned", "full", "clean") * 2,
    ]
    base = next(depth for depth, name, _ in got if name == "chunk")
    assert {depth for depth, _ in passes} == {base + 1}
    tokens = int(passes[0][1]["kept"])
    assert [int(f["kv"]) for _, f in passes[:5]] == [tokens] * 5
    assert all(int(f["kept"]) < tokens for _, f in passes if f["kind"] == "pruned")
    assert sum(name == "decode" for _, name, _ in got) == 9  # one per latent frame
