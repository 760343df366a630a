"""Writes SQLite files with the schema of Nsight Systems' export, and stands in for it."""

import sqlite3
import sys
from pathlib import Path

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE TARGET_INFO_GPU (vmId INTEGER, id INTEGER NOT NULL, name TEXT, busLocation TEXT,
    smCount INTEGER, totalMemory INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER,
    gridX INTEGER, gridY INTEGER, gridZ INTEGER, blockX INTEGER, blockY INTEGER, blockZ INTEGER,
    graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL,
    copyKind INTEGER NOT NULL, srcKind INTEGER, dstKind INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, value INTEGER NOT NULL,
    bytes INTEGER NOT NULL, graphNodeId INTEGER, memKind INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
    eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER,
    nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
    rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
    endGlobalTid INTEGER, textId INTEGER, domainId INTEGER, uint64Value INTEGER,
    int64Value INTEGER, doubleValue REAL, uint32Value INTEGER, int32Value INTEGER,
    floatValue REAL, jsonTextId INTEGER, jsonText TEXT);
"""
THREAD = (1234 << 24) | 5678
OURS, OTHER = 3, 4  # NVTX domains
DIT, ENCODE, DECODE = 7, 13, 14  # streams


class Capture:
    """A capture in the making. Times in ns on one clock that starts late, as real ones do."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)
        self.connection.executescript(SCHEMA)
        self.strings: dict[str, int] = {}
        self.correlation = 0
        self.connection.execute(
            "INSERT INTO TARGET_INFO_GPU VALUES (0, 0, 'NVIDIA H200', '', 132, 150000000000)"
        )
        for number, name in ((OURS, "liveedit"), (OTHER, "TensorRT")):
            self.nvtx(0, None, name, domain=number, kind=75)

    def string(self, text: str) -> int:
        if text not in self.strings:
            self.strings[text] = len(self.strings) + 1
            self.connection.execute(
                "INSERT INTO StringIds VALUES (?, ?)", (self.strings[text], text)
            )
        return self.strings[text]

    def nvtx(
        self, start: int, end: int | None, text: str, *, domain: int = OURS, kind: int = 59
    ) -> None:
        # Domain names come as text, registered messages by their string number.
        by_id = kind != 75
        self.connection.execute(
            "INSERT INTO NVTX_EVENTS (start, end, eventType, text, globalTid, textId, domainId) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                start,
                end,
                kind,
                None if by_id else text,
                THREAD,
                self.string(text) if by_id else None,
                domain,
            ),
        )

    def call(self, start: int, end: int, name: str) -> int:
        self.correlation += 1
        self.connection.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, ?, 0, NULL)",
            (start, end, THREAD, self.correlation, self.string(f"{name}_v10000")),
        )
        return self.correlation

    def kernel(
        self, start: int, end: int, stream: int, call: int, name: str, node: int | None = None
    ) -> None:
        self.connection.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL (start, end, deviceId, contextId, streamId, "
            "correlationId, demangledName, shortName, graphNodeId) VALUES (?,?,0,1,?,?,?,?,?)",
            (start, end, stream, call, *(self.string(n) for n in (f"void {name}()", name)), node),
        )

    def memcpy(self, start: int, end: int, stream: int, call: int, size: int, kind: int) -> None:
        self.connection.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY (start, end, deviceId, contextId, streamId, "
            "correlationId, bytes, copyKind) VALUES (?, ?, 0, 1, ?, ?, ?, ?)",
            (start, end, stream, call, size, kind),
        )

    def close(self) -> None:
        self.connection.commit()
        self.connection.close()


BLOCK_KERNELS = (
    ("generatedNativePointwise_adaln", 30),
    ("liveedit::mask_cache_gather_kernel", 12),
    ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n", 240),
    ("_gemm_mha_v2_sm90", 520),
    ("liveedit::mask_cache_scatter_kernel", 18),
    ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n", 700),
)


def stream_capture(path: Path, chunks: int = 3, blocks: int = 2) -> None:
    """A stream on three CUDA streams: graph replays per pass, encode and decode overlapped."""
    capture = Capture(path)
    us = 1000
    host = device = 5_000_000_000
    stream_start = host
    for c in range(chunks):
        chunk_start = host
        call = capture.call(host + 2 * us, host + 6 * us, "cudaMemcpyAsync")
        capture.memcpy(device, device + 90 * us, ENCODE, call, 12 * 480 * 832 * 3, 1)
        capture.nvtx(host + us, host + 8 * us, "upload")
        host += 10 * us
        call = capture.call(host + us, host + 5 * us, "cudaGraphLaunch")
        for i in range(6):
            at = device + 100 * us + i * 300 * us
            capture.kernel(at, at + 290 * us, ENCODE, call, "sm90_xmma_fprop_implicit_gemm", i)
        capture.nvtx(host, host + 6 * us, "encode")
        host += 10 * us
        cursor = device + 400 * us
        for step in range(5):
            kind = "clean" if step == 4 else "pruned" if c and step in (1, 2) else "full"
            scale = 0.4 if kind == "pruned" else 1.0
            kept = 1408 if kind == "pruned" else 4680
            capture.nvtx(
                host, host + 9 * us, f"pass kind={kind} step={step} kept={kept} kv={14040 + kept}"
            )
            capture.nvtx(host + us, host + 2 * us, "ExecutionContext::enqueue", domain=OTHER)
            call = capture.call(host + us, host + 8 * us, "cudaGraphLaunch")
            for b in range(blocks):
                for i, (name, duration) in enumerate(BLOCK_KERNELS):
                    length = int(duration * us * scale)
                    capture.kernel(cursor, cursor + length, DIT, call, name, b * 10 + i)
                    cursor += length + us
            host += 12 * us
            cursor += 6 * us
        call = capture.call(host + us, host + 4 * us, "cudaMemcpyAsync")
        capture.memcpy(cursor, cursor + 50 * us, DIT, call, 2 * 4680 * 1536 * 2, 8)
        capture.nvtx(host, host + 5 * us, "commit")
        host += 8 * us
        call = capture.call(host + us, host + 5 * us, "cudaGraphLaunch")
        for i in range(6):
            at = cursor + 60 * us + i * 400 * us
            capture.kernel(at, at + 380 * us, DECODE, call, "sm90_xmma_fprop_implicit_gemm", i)
        capture.nvtx(host, host + 6 * us, "decode")
        host += 8 * us
        call = capture.call(host + us, host + 30 * us, "cudaStreamSynchronize")
        capture.nvtx(host, host + 31 * us, "download")
        host += 40 * us
        capture.nvtx(chunk_start, host, f"chunk index={c}")
        device = cursor + 40 * us
        host = max(host, device - 300 * us)
    capture.nvtx(stream_start, host + us, "stream backend=tensorrt", kind=60)
    capture.close()


def fake_nsys(root: Path, version: str = "2025.3.2.474", profile: str = "", code: int = 0) -> Path:
    """A program that answers like nsys: a version, a report file, an export."""
    program = root / "nsys"
    program.write_text(
        f"""#!{sys.executable}
import shutil, sys, pathlib
args = sys.argv[1:]
if args == ["--version"]:
    print("NVIDIA Nsight Systems version {version}")
elif args[0] == "profile":
    out = next(a for a in args if a.startswith("--output=")).split("=")[1]
    {profile or 'pathlib.Path(out + ".nsys-rep").write_text("report")'}
    sys.exit({code})
else:
    shutil.copy({str(root / "made.sqlite")!r}, args[args.index("-o") + 1])
"""
    )
    program.chmod(0o755)
    return program
