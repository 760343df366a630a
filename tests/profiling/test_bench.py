"""The bench on a real bundle: what it measures, writes and compares."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from liveedit.bundle import read_manifest
from liveedit.cli import main
from liveedit.profiling import host_overhead, pass_speed, reference_speed
from liveedit.profiling.bench_case import Case, configuration, figures, run_case
from liveedit.profiling.memory import rss_bytes
from liveedit.profiling.records import read_record
from liveedit.profiling.stage_timer import StageTimer, TeeTracer, stage_ms
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.shipped import shipped
from liveedit.runtime.stream import StreamEditor


def test_a_case_accounts_for_the_whole_chunk(micro_bundle: Path) -> None:
    result = run_case(Case(bundle=micro_bundle, precision="fp32", chunks=4, threads=1, keep=0.3))
    got = figures(result)
    stages = {"upload", "encode", "noise", "pass full", "pass pruned", "pass clean", "commit",
              "mask", "decode", "download"}  # fmt: skip
    for chunk in result.chunks:
        assert set(chunk.stages) == stages
        assert sum(chunk.stages.values()) <= chunk.ms
        assert chunk.frames == 12
    assert got["fps"].value < got["fps_dit_only"].value
    assert 0 < result.realised_keep < 1
    tokens = read_manifest(micro_bundle).stream.block_seq_length
    assert result.chunks[0].kept_tokens % 4 == 0  # the bundle's bucket
    assert result.realised_keep * tokens >= 1
    full = run_case(
        Case(
            bundle=micro_bundle, precision="fp32", chunks=2, mask="off", warmup=1, wait_stages=True
        )
    )
    assert full.realised_keep == 1
    assert full.first_frames.shape != full.last_frames.shape == (12, 48, 64, 3)
    assert "device" not in " ".join(got)
    assert got["slowest_warmup_chunk_ms"].value == max(result.warmup_ms)
    assert full.chunks[0].flops > result.chunks[0].flops
    # What a run waits for decides what it may be compared with.
    assert not {"serial", "stages", "warmup"} & configuration(result).keys()
    on_gpu = replace(full, case=replace(full.case, backend="tensorrt", overlap=False))
    unusual = {"serial": True, "stages": True, "warmup": 1}
    assert unusual.items() <= configuration(on_gpu).items()


def test_predicted_memory_is_what_a_stream_allocates(micro_bundle: Path) -> None:
    manifest = read_manifest(micro_bundle)
    backend = NullBackend()
    off = MaskCachePolicy(mode="off")
    StreamEditor(micro_bundle, manifest, backend, precision="fp32", mask_cache=off).close()
    got = figures(run_case(Case(bundle=micro_bundle, precision="fp32", chunks=2, warmup=1)))
    predicted = got["memory_predicted_buffers"].value * 1e6
    # The loop's own copy of a latent is not a tensor of any graph.
    assert predicted == pytest.approx(sum(backend.sizes.values()), rel=0.05)
    assert got["memory_measured_steady"].value > 0
    assert rss_bytes() > 1 << 20


def test_host_overhead_is_counted(micro_bundle: Path) -> None:
    got = host_overhead.measure(micro_bundle, MaskCachePolicy(), precision="fp32", chunks=5)
    assert got.constant
    assert got.allocations == 0
    assert got.calls["run dit_step"] == 5
    assert got.loop_ms.count == got.device_ms.count == 5
    assert got.device_waits == 0
    assert got.device_calls["graph launch"] == 8


def test_pruned_passes_are_measured_against_their_flops(micro_bundle: Path) -> None:
    got = pass_speed.measure(micro_bundle, 0.5, precision="fp32", rounds=2)
    assert got.predicted > 1
    assert got.full_ms > 0
    assert got.kept * 2 == pytest.approx(got.tokens, abs=1)


def test_reference_runs_between_two_of_ours(micro_bundle: Path) -> None:
    got = reference_speed.measure(micro_bundle, "eager", precision="fp32", threads=1, rounds=2)
    assert min(got.ours_before_ms, got.reference_ms, got.ours_after_ms) > 0
    assert got.speedup == pytest.approx(
        got.reference_ms / ((got.ours_before_ms + got.ours_after_ms) / 2)
    )


@pytest.mark.parametrize(
    ("backend", "precision", "device", "dtype"),
    [
        ("tensorrt", "fp16", "cuda", "float16"),
        ("tensorrt", "fp32", "cuda", "float32"),
        ("onnxruntime", "fp16", "cpu", "float32"),
    ],
)
def test_the_reference_runs_where_ours_does(
    monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, device: str, dtype: str
) -> None:
    opened, made = [], dict[str, object]()

    def reference(*_: object, **options: object) -> Callable[[], None]:
        made.update(options)
        return lambda: None

    def open_backend(name: str, _: object) -> NullBackend:
        opened.append(name)
        return NullBackend()

    monkeypatch.setattr(reference_speed, "torch_pass", reference)
    monkeypatch.setattr(reference_speed, "open_backend", open_backend)
    reference_speed.measure(shipped("tiny"), "eager", precision=precision, backend=backend)
    assert opened == [backend]
    assert (made["device"], made["dtype"]) == (device, dtype)


def test_command_writes_records_and_pictures(
    micro_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["bench", "--bundle", str(micro_bundle), "--precision", "fp32", "--warmup", "1",
            "--chunks", "2", "--threads", "1"]  # fmt: skip
    sweep = ["--sweep", "keep-ratio=0.2,1", "--sweep", "mask-cache=released,off"]
    assert main([*args, *sweep, "--host", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "worst" in printed
    assert "DiT only" in printed
    records = json.loads(printed.splitlines()[-1])["records"]
    assert len(records) == 3  # the keep ratio has no meaning with the mask off
    assert {"bench.md", "timeline.html"} <= {p.name for p in out.iterdir()}
    for name in ("fps", "latency", "roofline", "stages"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    saved = [read_record(p) for p in out.glob("*.json")]
    assert len(saved) == 3
    assert any("host.loop_ms" in r.figures for r in saved)

    old = next(p for p in out.glob("*released-0.2*.json"))
    assert main([*args, "--keep-ratio", "0.2", "--compare", str(old)]) == 0
    assert "verdict" in capsys.readouterr().out
    assert main([*args, "--keep-ratio", "0.9", "--compare", str(old)]) == 2
    assert "cannot be compared: part is" in capsys.readouterr().err


def test_a_fixed_token_budget(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "--backend", "null", "--chunks", "2", "--warmup", "2"]
    assert main([*args, "--token-budget", "16", "--sweep", "mask-cache=paper,off"]) == 0
    records = json.loads(capsys.readouterr().out.splitlines()[-1])["records"]
    assert [r["configuration"].get("token_budget") for r in records] == [16, None]
    assert "-16tokens" in records[0]["part"]
    assert records[0]["figures"]["realised_keep"]["value"] < 1
    assert main([*args, "--token-budget", "99999"]) == 2
    assert "a token budget of 99999 is more than the" in capsys.readouterr().err


LAYERS = Path(__file__).parents[2] / "profiling/records/layers-tiny-full.json"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sweep", "colour=red"], "NAME=A,B"),
        (["--sweep", "keep-ratio=a"], "must be float"),
        (["--backend", "tensorrt", "--pass-speed"], "on one CPU thread; leave it out"),
        (["--chunks", "1"], "at least 2"),
        (["--backend", "abacus"], "no backend 'abacus'"),
        (["--compare", "none.json"], "cannot be read"),
        (["--compare", str(LAYERS)], "is a layers record"),
        (["--keep-ratio", "0"], "keep_ratio must be above 0"),
    ],
)
def test_bad_input(
    micro_bundle: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--bundle", str(micro_bundle), *args]) in (1, 2)
    assert message in capsys.readouterr().err


def test_tracers() -> None:
    timer, other = StageTimer(), StageTimer()
    tee = TeeTracer((timer, other))
    with tee.range("chunk", index=0), tee.range("pass", kind="full"):
        pass
    spans = timer.take()
    assert [(s.name, s.depth) for s in spans] == [("chunk", 0), ("pass", 1)]
    assert [s.name for s in other.take()] == ["chunk", "pass"]
    assert timer.take() == []
    assert set(stage_ms(spans)) == {"pass full"}
    waited: list[int] = []
    timer.wait = lambda: waited.append(len(timer.spans))
    with timer.range("chunk"), timer.range("pass", kind="full"):
        pass
    assert waited == [2, 2]
