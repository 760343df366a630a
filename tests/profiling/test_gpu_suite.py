"""The GPU suite's control flow at toy size on the CPU."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nsys_capture import fake_nsys, stream_capture

from liveedit.bundle import read_manifest
from liveedit.engines.builder import token_counts
from liveedit.errors import LiveEditError, UsageError
from liveedit.export.graph_trial import load_step
from liveedit.export.linears import linears
from liveedit.profiling import gpu_editor, gpu_plugins
from liveedit.profiling.gpu_editor import KEEPS, differences, editor, runnable, time_layers
from liveedit.profiling.gpu_eight_bit import formats, write_drawn
from liveedit.profiling.gpu_parts import PARTS, main, reference, run_part
from liveedit.profiling.gpu_setting import Setting, setting
from liveedit.profiling.records import Figure, read_record, single

SUITE = Path(__file__).parents[2] / "profiling/gpu_suite.sh"


def suite(*args: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, **extra}
    return subprocess.run([str(SUITE), *args], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["machine", "masks", "codecs", "kernel-times"])
def test_parts_at_toy_size(name: str) -> None:
    record = run_part(name, setting(dry_run=True, bundle=None), "x")
    assert record.kind == "gpu"
    assert record.figures
    assert "mean nothing" in record.notes[0]


def test_the_reference_keeps_what_it_has_when_its_time_is_up() -> None:
    figures = reference("eager", 0)(setting(dry_run=True, bundle=None))
    assert set(figures) == {"w12.pass_ms", "w12.tflops"}


def test_every_backend_is_held_against_the_cpu(micro_bundle: Path) -> None:
    figures = run_part("backends", setting(dry_run=True, bundle=micro_bundle), "x").figures
    assert figures["onnxruntime.largest_difference"].value == 0


def test_an_editor_of_every_window_and_codec(micro_bundle: Path) -> None:
    names = [name for name in PARTS if name.startswith("editor-")]
    assert names[0] == "editor-w12-wan"
    assert set(names) == {f"editor-w{w}-{c}" for w in (6, 12, 21) for c in ("wan", "taehv")}
    figures = run_part("editor-w6-wan", setting(dry_run=True, bundle=micro_bundle), "x").figures
    for label in ("onnxruntime.off", "onnxruntime.released-0.3"):
        assert figures[f"{label}.fps"].value > 0
        assert f"{label}.stage_ms.decode" in figures
    assert not any("layers" in name or "difference" in name for name in figures)
    first = [f"onnxruntime.released-0.3.{how}.first_chunk_ms" for how in ("cold", "prewarmed")]
    assert all(figures[name].value > 0 for name in first)
    for how in ("serial", "no-graphs"):
        assert figures[f"onnxruntime.released-0.3.{how}.chunk_ms"].count == 2
    assert figures["host.device_waits"].value == 0


def test_backends_are_held_against_the_first_one() -> None:
    frames, shown = np.full((2, 4, 4, 3), 7, dtype=np.uint8), {}
    assert not differences("tensorrt", frames, shown)
    figures = differences("onnxruntime", frames ^ 8, shown)
    for what in ("largest", "mean"):
        assert figures[f"onnxruntime.{what}_difference_from_tensorrt"].value == 8
    assert set(shown) == {"tensorrt", "onnxruntime"}


def test_layers_are_timed(micro_bundle: Path) -> None:
    out: dict[str, Figure] = {}
    time_layers(micro_bundle, "onnxruntime", time.monotonic() + 300, out)
    assert out["onnxruntime.layers.ms.ffn"].value > 0
    with pytest.raises(LiveEditError, match="no time was left for liveedit profile"):
        time_layers(micro_bundle, "onnxruntime", 0, out)


def test_an_editor_in_eight_bits(micro_bundle: Path, tmp_path: Path) -> None:
    assert [formats(c) for c in (None, "sm86")] == [("int8",)] * 2
    assert [formats(c) for c in ("sm89", "sm90", "sm120")] == [("fp8", "int8")] * 3
    bundle = shutil.copytree(micro_bundle, tmp_path / "bundle")
    write_drawn(bundle, "fp8")
    manifest = read_manifest(bundle)
    assert manifest.notes["fp8.verdict"] == "refused, forced: scales are drawn, for speed only"
    step = load_step(bundle, manifest, "fp8")
    pairs = sum(node.op_type == "QuantizeLinear" for node in step.graph)
    assert pairs == 6 * manifest.model.dit.num_layers
    assert len(linears(step)) == 0


def test_an_editor_part_without_time_fails(micro_bundle: Path) -> None:
    with pytest.raises(LiveEditError, match="no backend ran"):
        editor("wan", 6, -1)(setting(dry_run=True, bundle=micro_bundle))


def test_an_editor_is_exported_only_for_backends_that_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_editor, "compute_capability", lambda: "sm90")
    monkeypatch.setattr(gpu_editor.flavours, "load", lambda _: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(gpu_editor.flavours, "installed", lambda _: True)
    s = setting(dry_run=False, bundle=None)
    assert runnable(s) == {"tensorrt": "tensorrt"}
    said = capsys.readouterr().out
    assert "tensorrt-rtx: tensorrt-rtx does not build for sm90" in said
    assert "onnxruntime-cuda: " in said
    monkeypatch.setattr(gpu_editor.flavours, "installed", lambda _: False)
    monkeypatch.setattr(gpu_editor, "export_editor", lambda *_: pytest.fail("exported"))
    with pytest.raises(LiveEditError, match="no backend can run here"):
        editor("wan", 6, 60)(s)


def test_plugins_are_held_against_native_layers(
    micro_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = run_part("plugins", setting(dry_run=True, bundle=micro_bundle), "x").figures
    counts = token_counts(read_manifest(micro_bundle).stream, KEEPS)
    assert len(counts) > 1
    assert {name: f.count for name, f in figures.items()} == {
        f"onnxruntime.{form}.kept{n}.pass_ms": rounds
        for form, rounds in (("plugins", 4), ("native", 2))
        for n in counts
    }
    # On a GPU: plans of either form in a bundle of its own, exported once.
    calls: list[list[str]] = []
    exported: list[int] = []

    def export(s: Setting, codec: str, window: int, bundle: Path) -> None:
        exported.append(s.dit.num_layers)
        shutil.copytree(micro_bundle, bundle)

    monkeypatch.setattr(gpu_editor, "_command", lambda arguments, _: calls.append(arguments))
    monkeypatch.setattr(gpu_plugins, "export_editor", export)
    monkeypatch.setattr(gpu_plugins, "runnable", lambda _: gpu_editor.FLAVOURS)
    monkeypatch.setattr(gpu_plugins, "_compare", lambda *_: {"x": single(1, "x")})
    gpu_plugins.plugins(setting(dry_run=False, bundle=None), 60)
    assert exported == [gpu_plugins.BLOCKS]
    assert [(Path(c[1]).name, c[3], c[-1] == "--no-plugins") for c in calls] == [
        (form, flavour, form == "native")
        for flavour in ("tensorrt", "tensorrt-rtx")
        for form in ("plugins", "native")
    ]


def test_a_capture_becomes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = setting(dry_run=True, bundle=tmp_path, out=tmp_path)
    monkeypatch.setenv("NSYS", str(tmp_path / "none"))
    assert run_part("nsys", s, "x").figures["captures"].value == 0
    with pytest.raises(UsageError, match="not a program"):
        run_part("nsys", replace(s, device="cuda"), "x")
    stream_capture(tmp_path / "made.sqlite")
    monkeypatch.setenv("NSYS", str(fake_nsys(tmp_path)))
    figures = run_part("nsys", s, "x").figures
    assert figures["captures"].value == 1
    assert figures["onnxruntime.gpu_ms.pruned pass"].value == pytest.approx(1.216)
    assert figures["onnxruntime.waits"].value == 1
    assert (tmp_path / "capture" / "onnxruntime.html").stat().st_size > 10_000
    monkeypatch.setenv("NSYS", str(fake_nsys(tmp_path, code=3, profile="pass")))
    with pytest.raises(LiveEditError, match="no backend could be captured"):
        run_part("nsys", s, "x")


def test_official_shape_is_what_the_gpu_gets() -> None:
    s = setting(dry_run=False, bundle=None)
    assert (s.dit.dim, s.stream.local_attn_size, s.device) == (1536, 12, "cuda")


def test_the_parts_need_few_packages() -> None:
    """A part that runs PyTorch alone must not fail where nothing else is installed."""
    missing = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "av", "torch")
    program = f"import sys; sys.modules |= dict.fromkeys({missing}); "
    program += "from liveedit.profiling.gpu_parts import main; main(['list'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("machine "), done.stderr


def test_list_and_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PARTS)
    assert sum(int(line.split()[1]) for line in lines) <= 2 * 60 * 60
    assert main(["run", "backends", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "no bundle was given" in capsys.readouterr().err
    assert suite().returncode == 2
    assert suite("--colour", "red").returncode == 2


@pytest.mark.slow
def test_dry_run(micro_bundle: Path, tmp_path: Path) -> None:
    done = suite(str(tmp_path / "out"), str(micro_bundle), "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 parts failed" in done.stdout
    for name in PARTS:
        assert read_record(tmp_path / "out" / f"{name}.json").part == name
    assert re.search(r"reference-eager +w12\.pass_ms", done.stdout)


def test_a_failing_part_does_not_stop_the_others(tmp_path: Path) -> None:
    # A python that fails in one part and is quick in the others.
    program = tmp_path / "python"
    program.write_text(
        f"""#!/usr/bin/env bash
case "$*" in
    "-m pip "*/two-1.whl) exit 1 ;;
    "-m pip "*) ;;
    *list*) echo "good 9"; echo "bad 9"; echo "late 1"; echo "last 9" ;;
    *" bad "*) echo "it broke" >&2; exit 3 ;;
    *" late "*) exec sleep 30 ;;
    *summary*) echo "the table" ;;
    *) [ ! -e "$TMPDIR/left" ] && touch "$TMPDIR/left"
       echo "$? $* $PYTHONPATH" > "{tmp_path}/$4.ran" ;;
esac
"""
    )
    program.chmod(0o755)
    wheels = tmp_path / "given"
    wheels.mkdir()
    for name in ("one", "two"):
        (wheels / f"{name}-1.whl").touch()
    options = ("--dry-run", "--wheels", str(wheels))
    done = suite(
        str(tmp_path / "out"), *options, PYTHON=str(program), LIVEEDIT_LIBRARIES=str(tmp_path)
    )
    assert done.returncode == 1
    assert "2 parts failed" in done.stdout
    assert done.stdout.index("the table") > done.stdout.index("last")
    assert "not installed: two-1.whl" in done.stdout
    ran = (tmp_path / "last.ran").read_text()
    assert ran.startswith("0 "), "what a part leaves behind is removed"
    shipped_with_it = SUITE.parents[1].resolve() / "runtime/assets/tiny"
    assert f"--bundle {shipped_with_it} --dry-run" in ran
    assert f":{tmp_path}/out/wheels/one-1" in ran
    assert "two-1" not in ran
    assert "it broke" in (tmp_path / "out/bad.failed.txt").read_text()
    assert "exit status 124" in (tmp_path / "out/late.failed.txt").read_text()
