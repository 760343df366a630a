from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from engine_bundles import with_plan, write_bundle
from engine_graphs import step_model

from liveedit.bundle import read_manifest, write_manifest
from liveedit.cli import main
from liveedit.engines import builder, child, flavour
from liveedit.engines.builder import BuildPlan, build_bundle, token_counts
from liveedit.engines.plan import read_sets
from liveedit.errors import BackendError, BundleError, LiveEditError, UsageError
from liveedit.profiling.records import read_record

pytestmark = pytest.mark.builder
pytest.importorskip("tensorrt_rtx")


def build(root: Path, **options: object) -> tuple[BuildPlan, str]:
    shown = io.StringIO()
    arguments = {"flavour": "tensorrt-rtx", "targets": ("sm89",), "keep": (), **options}
    result = build_bundle(root, progress=shown, **arguments)  # type: ignore[arg-type]
    return result, shown.getvalue()


def leftovers(root: Path) -> list[str]:
    return (
        sorted(p.name for p in (root / "engines").iterdir()) if (root / "engines").exists() else []
    )


def test_a_plan_is_built_listed_and_not_built_twice(bundle: Path) -> None:
    first, shown = build(bundle, keep=(0.3,))
    assert first.built == ("dit_step",)
    assert [phase in shown for phase in ("parsing", "building", "writing")] == [True] * 3
    assert "%" not in shown
    manifest = read_manifest(bundle)
    plans = read_sets(manifest)[first.key]
    assert plans.inputs.profiles == (96, 32)
    assert plans.inputs.targets == ("sm89",)
    assert plans.graphs["dit_step"].plan in manifest.files
    assert set(plans.inputs.onnx) == {"fp16/dit_step.onnx", "fp16/dit_step.onnx.data"}
    plan = bundle / plans.graphs["dit_step"].plan
    written = plan.stat().st_mtime_ns
    again, shown = build(bundle, keep=(0.3,))
    assert (again.built, again.reused) == ((), ("dit_step",))
    assert "already built" in shown
    assert plan.stat().st_mtime_ns == written
    plan.write_bytes(b"x" + plan.read_bytes()[1:])
    assert build(bundle, keep=(0.3,))[0].built == ("dit_step",)
    other, _ = build(bundle)
    assert other.key != first.key


def test_an_entry_of_another_version_is_replaced(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(bundle, replace(manifest, plans={"old": {"inputs": 1}}))
    with pytest.raises(BundleError, match="Run: liveedit build"):
        read_sets(read_manifest(bundle))
    result, _ = build(bundle)
    assert set(read_manifest(bundle).plans) == {result.key}


def test_one_graph_is_added_to_the_set_of_another(tmp_path: Path) -> None:
    root = write_bundle(tmp_path, {"dit_step": step_model(), "prompt": step_model(blocks=1)})
    first, _ = build(root, graphs=("prompt",))
    second, _ = build(root)
    assert second.key == first.key
    assert (second.built, second.reused) == (("dit_step",), ("prompt",))
    assert leftovers(root) == [".lock", first.key]


def test_a_refused_graph_names_its_node_and_leaves_nothing(tmp_path: Path) -> None:
    model = step_model()
    model.functions.clear()
    model.graph.node[0].domain = "liveedit"
    model.graph.node[0].op_type = "NoSuchOperator"
    root = write_bundle(tmp_path, {"dit_step": model})
    with pytest.raises(BackendError, match=r"dit_step: the parser refuses.*NoSuchOperator"):
        build(root)
    assert leftovers(root) == [".lock"]
    assert read_manifest(root).plans == {}


def test_a_graph_that_is_not_the_manifests_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    spec = manifest.graphs["fp16"]["dit_step"]
    wrong = replace(spec, inputs=(replace(spec.inputs[0], shape=(1, 97, 128)), *spec.inputs[1:]))
    write_manifest(bundle, replace(manifest, graphs={"fp16": {"dit_step": wrong}}))
    with pytest.raises(BundleError, match=r"'x' of .* is float16 \[1, 96, 128\].*\[1, 97, 128\]"):
        build(bundle)
    assert leftovers(bundle) == [".lock"]


def test_a_changed_weight_file_is_refused_before_the_builder(bundle: Path) -> None:
    weights = bundle / "fp16/dit_step.onnx.data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"dit_step\.onnx\.data was changed"):
        build(bundle)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os; os.abort()", r"aborted by tensorrt-rtx \(SIGABRT\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"memory runs out.*--graph"),
        ("raise MemoryError", "memory runs out"),
        ("import sys; sys.exit('broken')", r"exit code 1.*broken"),
    ],
)
def test_the_death_of_the_child_is_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    monkeypatch.setattr(child, "worker_command", lambda _: [sys.executable, "-c", code])
    with pytest.raises(BackendError, match=f"dit_step: the builder process.*{sentence}"):
        build(bundle)
    assert leftovers(bundle) == [".lock"]


def test_no_memory_in_the_child_is_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import sys
from liveedit.engines import build_worker as worker

def build(request, events):
    raise MemoryError

worker.build = build
sys.exit(worker.main())
"""
    monkeypatch.setattr(
        child, "worker_command", lambda request: [sys.executable, "-c", code, str(request)]
    )
    with pytest.raises(BackendError, match=r"builder is out of memory\. Free memory, or .*--keep"):
        build(bundle)
    assert leftovers(bundle) == [".lock"]


def test_a_full_disk_in_the_child_is_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = builder.run_worker
    monkeypatch.setattr(
        builder,
        "run_worker",
        lambda request, *rest: run(replace(request, plan="/dev/full"), *rest),
    )
    with pytest.raises(BackendError, match="dit_step: the disk is full"):
        build(bundle)
    assert leftovers(bundle) == [".lock"]


def test_a_disk_without_room_is_refused_at_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = builder.shutil.disk_usage(bundle)
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(BundleError, match="10 bytes are free"):
        build(bundle)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_build_leaves_nothing_under_the_final_name(bundle: Path, number: int) -> None:
    script = (
        "import sys, time; from liveedit.engines import child, builder\n"
        "child.worker_command = lambda _: [sys.executable, '-c', "
        "'import ctypes, time; ctypes.CDLL(None).prctl(1, 9); time.sleep(600)']\n"
        "from liveedit.cli import main\n"
        f"sys.exit(main(['build', {str(bundle)!r}, '--flavour', 'tensorrt-rtx', "
        "'--target', 'sm89']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    staged = bundle / "engines/.staging/dit_step/request.json"
    for _ in range(600):
        if staged.exists():
            break
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    assert [n for n in leftovers(bundle) if not n.startswith(".")] == []
    assert read_manifest(bundle).plans == {}
    result, _ = build(bundle)
    assert leftovers(bundle) == [".lock", result.key]


def test_a_record_of_each_build_is_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(bundle), "--flavour", "tensorrt-rtx", "--target", "sm89"]
    assert main([*arguments, "--record", str(tmp_path / "records")]) == 0
    (path,) = (tmp_path / "records").iterdir()
    assert str(path) in capsys.readouterr().out
    record = read_record(path)
    assert (record.kind, record.part) == ("build", "dit_step")
    assert record.configuration["token_counts"] == [96, 40, 32]
    assert record.figures["peak_rss"].value > 10**8
    assert record.figures["gate_findings"].value == 0
    assert main([*arguments, "--record", str(tmp_path / "again")]) == 0
    assert not (tmp_path / "again").exists()


def test_two_builds_at_once_are_refused(bundle: Path) -> None:
    with builder._only_builder(bundle), pytest.raises(BackendError, match="another build of"):
        build(bundle)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"targets": ("sm90",)}, UsageError, r"sm90; it builds for sm75, .*sm120"),
        ({"targets": ()}, UsageError, "no target is named"),
        ({"precision": "int8"}, UsageError, "has no int8 graphs; it has fp16"),
        ({"graphs": ("vae",)}, UsageError, "no graph 'vae'; there are dit_step"),
        ({"flavour": "trt"}, UsageError, "allowed: auto, tensorrt, tensorrt-rtx"),
        ({"keep": (1.5,)}, UsageError, "above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_calls_name_what_is_allowed(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    error: type[LiveEditError],
    sentence: str,
) -> None:
    monkeypatch.setattr(builder, "compute_capability", lambda: None)
    with pytest.raises(error, match=sentence):
        build(bundle, **options)


def test_each_missing_flavour_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "installed", lambda _: False)
    for name, package in (("tensorrt", "tensorrt-cu13"), ("tensorrt-rtx", "tensorrt-rtx")):
        with pytest.raises(BackendError, match=f"pip install {package}"):
            flavour.resolve(name)
    with pytest.raises(BackendError, match=r"tensorrt-rtx\..*pip install tensorrt-cu13"):
        flavour.resolve("auto")


def test_timings_are_kept_by_version_gpu_and_driver(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(builder, "name_and_driver", lambda: ("NVIDIA RTX 4090", "13.0"))
    inputs = with_plan(bundle)[1].inputs
    assert builder._timing_cache(inputs) is None  # TensorRT-RTX has none
    path = builder._timing_cache(replace(inputs, flavour="tensorrt", version="11.1"))
    assert path == str(tmp_path / "liveedit-trt/tensorrt-11.1-NVIDIA-RTX-4090-13.0.timing")


def test_profiles_are_few_and_static(bundle: Path) -> None:
    stream = read_manifest(bundle).stream
    assert token_counts(stream) == (96, 40, 32)
    assert token_counts(stream, ()) == (96,)
    assert token_counts(stream, (1.0, 0.99)) == (96,)


def test_the_layer_table_is_beside_the_plan(bundle: Path) -> None:
    result, _ = build(bundle)
    table = json.loads((bundle / "engines" / result.key / "dit_step.layers.json").read_bytes())
    classes = [layer["cls"] for layer in table["layers"]]
    assert classes.count("attention") == 2
    assert table["weights_bytes"] > 700_000
