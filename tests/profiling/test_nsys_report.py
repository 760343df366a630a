"""The converter on SQLite files with the documented schema."""

import json
import sqlite3
from pathlib import Path

import pytest
from nsys_capture import BLOCK_KERNELS, DIT, OURS, Capture, stream_capture

from liveedit.errors import UsageError
from liveedit.profiling.kernel_classes import kernel_class
from liveedit.profiling.nsys_report import Report, analyse, as_dict, text
from liveedit.profiling.nsys_trace import Trace, nest, read_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("nsys") / "run.sqlite"
    stream_capture(path)
    return read_trace(path)


@pytest.fixture(scope="module")
def report(trace: Trace) -> Report:
    return analyse(trace)


def test_ranges_nest_and_other_domains_are_left_out(trace: Trace) -> None:
    assert trace.device == "NVIDIA H200"
    names = [r.name for r in trace.ranges]
    assert names.count("chunk") == 3
    assert names.count("pass") == 15
    assert not any("enqueue" in n for n in names)
    first_pass = next(r for r in trace.ranges if r.name == "pass")
    assert first_pass.fields == {"kind": "full", "step": "0", "kept": "4680", "kv": "18720"}
    assert trace.ranges[first_pass.parent].name == "chunk"
    assert trace.ranges[trace.ranges[first_pass.parent].parent].name == "stream"
    assert min(r.start for r in trace.ranges) == 0


def test_graph_kernels_belong_to_the_range_that_replayed_the_graph(trace: Trace) -> None:
    kernels = [a for a in trace.activities if a.kind == "attention"]
    assert len(kernels) == 3 * 5 * 2
    assert {trace.ranges[a.range].name for a in kernels} == {"pass"}
    assert all(a.launched >= 0 for a in trace.activities)


def test_stages_and_passes(report: Report) -> None:
    block_us = sum(d for _, d in BLOCK_KERNELS)
    rows = {r.name: r for r in report.passes}
    assert set(rows) == {"full pass", "pruned pass", "clean pass"}
    assert rows["full pass"].count == 4 + 2 + 2
    assert rows["pruned pass"].count == 4
    assert rows["full pass"].gpu_ms_p50 == pytest.approx(2 * block_us / 1e3)
    assert rows["pruned pass"].gpu_ms_p50 == pytest.approx(0.4 * 2 * block_us / 1e3, rel=1e-3)
    stages = {r.name: r for r in report.stages}
    assert set(stages) == {"upload", "encode", "pass", "commit", "decode", "download"}
    assert stages["encode"].gpu_ms == pytest.approx(3 * 6 * 0.29)
    assert stages["pass"].kernels == 15 * 2 * len(BLOCK_KERNELS)
    assert stages["download"].kernels == 0
    assert stages["download"].host_ms == pytest.approx(3 * 0.031)


def test_classes_overlap_gaps_and_host_time(report: Report) -> None:
    classes = {r.name: r for r in report.classes}
    assert set(classes) == {"gemm", "attention", "convolution", "plugin", "elementwise", "copy"}
    assert classes["plugin"].count == 15 * 2 * 2
    assert classes["copy"].count == 6
    assert sum(r.share for r in report.classes) == pytest.approx(1)
    assert report.chunks == 3
    # Encode runs beside the first pass: what the streams sum to exceeds the busy time.
    assert report.overlapped_ms > 1
    assert sum(report.streams.values()) == pytest.approx(
        report.busy_ms + report.overlapped_ms, rel=0.2
    )
    assert report.busy_ms + report.gap_ms == pytest.approx(report.span_ms)
    assert report.host_calls["cudaStreamSynchronize"] == (3, pytest.approx(3 * 0.029))
    assert report.syncs == 3
    assert DIT in report.streams


def test_text_and_json(report: Report) -> None:
    out = text(report)
    for words in ("pruned pass", "convolution", "1.00 per chunk", "3 chunks"):
        assert words in out
    data = json.loads(json.dumps(as_dict(report), allow_nan=False))
    assert data["chunk_ms"] == pytest.approx(report.chunk_ms)


def test_nesting_of_touching_and_repeated_intervals() -> None:
    found = [(0, 100, "a", 1), (0, 50, "b", 1), (50, 100, "c", 1), (10, 20, "d", 2)]
    got = {r.name: (r.parent, r.depth) for r in nest(found)}
    assert got == {"a": (-1, 0), "b": (0, 1), "c": (0, 1), "d": (-1, 0)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_gemm_f16f16", "gemm"),
        ("_gemm_mha_v2", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("fmha_v2_flash_attention_fp16_S_128", "attention"),
        ("sm80_xmma_fprop_implicit_gemm_f16", "convolution"),
        ("void liveedit::gather_rows<half>(...)", "plugin"),
        ("generatedNativePointwise", "elementwise"),
        ("void genericReformat::copyPackedKernel", "copy"),
        ("vectorized_elementwise_kernel", "elementwise"),
        ("convertFp32ToFp16", "elementwise"),
        ("nvjet_hsh_128x256", "gemm"),
    ],
)
def test_kernel_classes(name: str, kind: str) -> None:
    assert kernel_class(name) == kind


def test_bad_captures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        read_trace(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database at all, " * 100)
    with pytest.raises(UsageError, match="cannot be read as an Nsight Systems"):
        read_trace(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t (a)").connection.close()
    with pytest.raises(UsageError, match="no table StringIds"):
        read_trace(tmp_path / "other.sqlite")
    empty = Capture(tmp_path / "empty.sqlite")
    empty.nvtx(5, 9, "chunk index=0", domain=OURS)
    empty.close()
    with pytest.raises(UsageError, match=r"is empty.*no GPU work"):
        read_trace(tmp_path / "empty.sqlite")


def test_without_ranges_the_report_says_so(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "bare.sqlite")
    call = capture.call(10, 20, "cudaLaunchKernel")
    capture.kernel(30, 90, DIT, call, "my_gemm")
    capture.connection.execute("DROP TABLE NVTX_EVENTS")
    capture.close()
    report = analyse(read_trace(tmp_path / "bare.sqlite"))
    assert report.chunks == 0
    assert "install the nvtx package" in text(report)
