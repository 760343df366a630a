from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import with_plan, write_bundle
from engine_graphs import step_model

from liveedit.bundle import FileEntry, read_manifest, write_manifest
from liveedit.engines.plan import (
    PlanSet,
    PluginLibrary,
    as_entry,
    here,
    read_sets,
)
from liveedit.engines.plugin_library import find_plugins
from liveedit.engines.verify import Environment, read_plan, select_plans, verified_plugins
from liveedit.errors import BundleError

HERE = Environment(
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    platform=here(),
    compute_capability="sm89",
    plugins=None,
)


def select(root: Path, environment: Environment = HERE, graph: str = "dit_step") -> PlanSet:
    return select_plans(root, read_manifest(root), "fp16", environment, (graph,))[1]


def test_a_fitting_plan_is_read_whole(bundle: Path) -> None:
    manifest, plans = with_plan(bundle)
    assert select(bundle) == plans
    assert read_plan(bundle, manifest, plans, "dit_step") == b"plan" * 100


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"flavour": "tensorrt"}, "flavour is tensorrt-rtx in the plan and tensorrt here"),
        ({"version": "1.8.0"}, r"version is 1\.7\.1\.116 in the plan and 1\.8\.0 here"),
        ({"platform": "linux-arm64"}, "platform is .* in the plan and linux-arm64 here"),
        ({"compute_capability": "sm90"}, "target GPU is sm86, sm89 in the plan and sm90 here"),
        ({"compute_capability": None}, "target GPU is sm86, sm89 in the plan and no GPU here"),
    ],
)
def test_another_machine_is_refused_with_both_values_and_the_command(
    bundle: Path, change: dict[str, Any], sentence: str
) -> None:
    with_plan(bundle)
    with pytest.raises(BundleError, match=f"{sentence}.*Run: liveedit build .* --precision fp16"):
        select(bundle, replace(HERE, **change))


def test_another_plugin_library_is_refused(bundle: Path) -> None:
    built_with = PluginLibrary(kind="library", sha256="a" * 64)
    with_plan(bundle, plugins=built_with)
    assert select(bundle, replace(HERE, plugins=built_with))
    with pytest.raises(BundleError, match=r"plugin library is library aaaaaaaaaaaa .* none here"):
        select(bundle)
    other = PluginLibrary(kind="library", sha256="b" * 64)
    with pytest.raises(BundleError, match="library aaaaaaaaaaaa in the plan and library bbbbbbbb"):
        select(bundle, replace(HERE, plugins=other))


def test_graphs_exported_anew_make_plans_stale(bundle: Path) -> None:
    manifest, _ = with_plan(bundle)
    entry = FileEntry(sha256="c" * 64, bytes=3)
    write_manifest(bundle, replace(manifest, files={**manifest.files, "fp16/dit_step.onnx": entry}))
    with pytest.raises(BundleError, match=r"sha256 of fp16/dit_step\.onnx is .* and cccccccccccc"):
        select(bundle)


def test_other_shapes_are_refused(bundle: Path) -> None:
    manifest, _ = with_plan(bundle)
    spec = manifest.graphs["fp16"]["dit_step"]
    wrong = replace(spec, inputs=(replace(spec.inputs[0], dtype="float32"), *spec.inputs[1:]))
    write_manifest(bundle, replace(manifest, graphs={"fp16": {"dit_step": wrong}}))
    with pytest.raises(BundleError, match=r"inputs of dit_step is .*float16.*float32"):
        select(bundle)


def test_no_plan_and_a_missing_graph_name_the_command(tmp_path: Path) -> None:
    root = write_bundle(tmp_path, {"dit_step": step_model(), "prompt": step_model(blocks=1)})
    with pytest.raises(BundleError, match=r"holds no fp16 plans\. Run: liveedit build"):
        select(root)
    with_plan(root)
    with pytest.raises(BundleError, match=r"lack the graph prompt\. Run: liveedit build"):
        select(root, graph="prompt")


def test_inputs_that_do_not_make_the_key_are_refused(bundle: Path) -> None:
    manifest, plans = with_plan(bundle)
    forged = replace(plans, inputs=replace(plans.inputs, targets=("sm120",)))
    write_manifest(bundle, replace(manifest, plans={plans.inputs.key: as_entry(forged)}))
    with pytest.raises(BundleError, match="states inputs whose key is"):
        read_sets(read_manifest(bundle))


def test_a_plan_is_hashed_as_read(bundle: Path) -> None:
    manifest, plans = with_plan(bundle)
    path = bundle / plans.graphs["dit_step"].plan
    path.write_bytes(b"plan" * 99 + b"plaN")
    with pytest.raises(BundleError, match="was changed: 400 bytes"):
        read_plan(bundle, manifest, plans, "dit_step")
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_plan(bundle, manifest, plans, "dit_step")
    files = {k: v for k, v in manifest.files.items() if not k.endswith(".plan")}
    with pytest.raises(BundleError, match="not listed"):
        read_plan(bundle, replace(manifest, files=files), plans, "dit_step")


def test_plugins_are_loaded_only_with_the_hash_the_plans_state(bundle: Path) -> None:
    _, plans = with_plan(bundle)
    assert verified_plugins(plans) is None
    present = find_plugins()
    with_present = replace(plans, inputs=replace(plans.inputs, plugins=present.identity))
    path = verified_plugins(with_present)
    assert path == present.path
    assert path.is_absolute()
    other = PluginLibrary(kind="library", sha256="b" * 64)
    with pytest.raises(BundleError, match=r"library bbbbbbbbbbbb; this installation has"):
        verified_plugins(replace(plans, inputs=replace(plans.inputs, plugins=other)))
