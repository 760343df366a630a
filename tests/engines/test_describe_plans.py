from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_bundles import with_plan

from liveedit.bundle import read_manifest
from liveedit.engines import inspect
from liveedit.engines.inspect import describe_plans, lines
from liveedit.engines.plan import here
from liveedit.engines.verify import Environment
from liveedit.errors import BackendError
from liveedit.runtime.memory_budget import memory_budget

MACHINE = Environment(
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    platform=here(),
    compute_capability="sm89",
    plugins=None,
)


def on(machine: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "installed", lambda _: True)
    monkeypatch.setattr(inspect, "environment", lambda _: machine)


def test_a_fitting_set_would_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plans = with_plan(bundle)
    on(MACHINE, monkeypatch)
    (report,) = describe_plans(bundle)
    assert report.refusals == ()
    assert (report.targets, report.token_counts) == (("sm86", "sm89"), (96, 32))
    text = "\n".join(lines([report]))
    assert f"plans {plans.inputs.key}: tensorrt-rtx 1.7.1.116, for sm86, sm89, fp16" in text
    assert text.endswith("  would load here")
    budget = memory_budget(read_manifest(bundle), "fp16")
    buffers = sum(budget.values()) - budget["weights"]
    assert report.device_bytes["activations"] == plans.activation_bytes == 1
    assert sum(report.device_bytes.values()) == buffers + plans.weights_bytes + 1
    assert f"on the GPU, at least {(buffers + 2) / 2**20:.1f} MiB: weights" in text


def test_every_reason_is_listed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_plan(bundle)
    on(replace(MACHINE, version="1.8", compute_capability=None), monkeypatch)
    (report,) = describe_plans(bundle)
    assert len(report.refusals) == 2
    assert "version is 1.7.1.116 in the plan and 1.8 here" in report.refusals[0]
    assert "no GPU here" in report.refusals[1]


def test_a_changed_plan_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plans = with_plan(bundle)
    on(MACHINE, monkeypatch)
    (bundle / plans.graphs["dit_step"].plan).write_bytes(b"plan" * 99 + b"PLAN")
    (report,) = describe_plans(bundle)
    assert "was changed" in str(report.plans[0].changed)
    assert "would load here" not in "\n".join(lines([report]))
    assert describe_plans(bundle, check_files=False)[0].plans[0].changed is None


def test_without_tensorrt_the_package_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_plan(bundle)
    monkeypatch.setattr(inspect, "installed", lambda _: False)
    (report,) = describe_plans(bundle)
    assert report.refusals == ("tensorrt-rtx is not installed here. Run: pip install tensorrt-rtx",)

    def broken(_: str) -> Environment:
        raise BackendError("tensorrt_rtx does not load: no driver")

    monkeypatch.setattr(inspect, "installed", lambda _: True)
    monkeypatch.setattr(inspect, "environment", broken)
    assert describe_plans(bundle)[0].refusals == ("tensorrt_rtx does not load: no driver",)
