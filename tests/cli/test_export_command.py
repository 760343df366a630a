"""``liveedit export``: from the official files to a bundle, and what each wrong call is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundle_factory import make_manifest
from micro import MICRO_STREAM, MICRO_WAN
from released_files import CHECKPOINT, TEXT_ENCODER, TOKENIZER, ReleasedFiles

from liveedit.bundle import Manifest, read_manifest
from liveedit.cli import main
from liveedit.export import bundle_writer
from liveedit.export.sources import random_sources


@pytest.fixture
def files(tmp_path: Path) -> ReleasedFiles:
    released = ReleasedFiles(tmp_path)
    released.write()
    return released


def test_official_files_make_a_bundle_of_their_weights(micro_wan_bundle: Path) -> None:
    """The command made it. Tests of the exporter hold what its graphs compute against torch."""
    manifest = read_manifest(micro_wan_bundle)
    assert manifest.notes == {"checkpoint": CHECKPOINT}
    weights, _, _ = random_sources(MICRO_WAN, 0)
    state = {name: tensor for part in weights.values() for name, tensor in part.items()}
    seen = set()
    for spec in manifest.graphs["fp32"].values():
        for stored in onnx.load(micro_wan_bundle / spec.file).graph.initializer:
            name = stored.name.removesuffix(".T")
            if name in state:
                want = state[name].numpy()
                want = want if name == stored.name else want.T
                np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored), want, name)
                seen.add(name)
    scaled = {name for name in state if name.endswith(".gamma")}  # by the root of their width
    assert set(state) - seen <= scaled | {"blocks.0.pos_embedding.embedding.weight"}


def test_a_bundle_is_all_that_is_left(
    files: ReleasedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writer, "graphs", lambda *_: {})
    assert files.run() == 0
    assert files.leftovers() == {"bundle"}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the writer of bundles is called with; it writes nothing."""
    calls: list[Any] = []

    def write(*arguments: Any, **_: Any) -> Manifest:
        calls.append(arguments)
        return make_manifest(arguments[0])

    monkeypatch.setattr(bundle_writer, "write_bundle", write)
    return calls


def test_every_tensor_of_the_files_reaches_the_writer(
    files: ReleasedFiles, given: list[Any]
) -> None:
    assert files.run() == 0
    ((out, model, stream, weights, tokenizer),) = given
    assert (out, model, stream) == (files.out, MICRO_WAN, MICRO_STREAM)
    want, same_tokenizer, _ = random_sources(MICRO_WAN, 0)
    assert tokenizer == same_tokenizer
    assert weights.keys() == want.keys()
    for name, state in want.items():
        assert list(weights[name]) == list(state)
        assert all(torch.equal(weights[name][key], state[key]) for key in state)


def test_a_text_encoder_that_is_left_out_need_not_be_there(
    files: ReleasedFiles, given: list[Any]
) -> None:
    (files.root / TEXT_ENCODER).unlink()
    assert files.run("--no-text-encoder") == 0
    assert set(given[0][3]) == {"dit", "codec"}


def cut_checkpoint(files: ReleasedFiles) -> None:
    path = files.root / CHECKPOINT
    path.write_bytes(path.read_bytes()[:5000])


def partial_checkpoint(files: ReleasedFiles) -> None:
    path = files.root / CHECKPOINT
    data = torch.load(path, weights_only=True)
    del data["generator"]["model.blocks.1.ffn.0.weight"]
    torch.save(data, path)


def without(name: str) -> Callable[[ReleasedFiles], None]:
    return lambda files: (files.root / name).unlink()


def nothing(files: ReleasedFiles) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "options", "code", "said"),
    [
        (cut_checkpoint, (), 1, "ar-forcing_002000.pt is not a complete checkpoint"),
        (partial_checkpoint, (), 1, "1 missing (blocks.1.ffn.0.weight)"),
        (without("wan/Wan2.1_VAE.pth"), (), 1, "Wan2.1_VAE.pth does not exist"),
        (without(TEXT_ENCODER), (), 1, "models_t5_umt5-xxl-enc-bf16.pth does not exist"),
        (without(TOKENIZER), (), 1, "Point --wan at the Wan2.1-T2V-1.3B folder"),
        (nothing, ("--config", "liveedit-1.3b"), 1, "does not fit the configuration"),
        (nothing, ("--config", "wan"), 2, "no configuration 'wan'; there are liveedit-1.3b"),
        (nothing, ("--height", "100"), 2, "multiples of 16, got 100 x 64"),
        (nothing, ("--window", "10"), 2, "multiples of num_frame_per_block 3"),
        (nothing, ("--precision", "fp32,int4"), 2, "no precision 'int4'; there are fp32, fp16"),
        (nothing, ("--ema",), 1, "no generator_ema"),
        (nothing, ("-o", "/proc/none/bundle"), 1, "liveedit: /proc/none"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong_and_leaves_nothing(
    files: ReleasedFiles,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[ReleasedFiles], None],
    options: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    spoil(files)
    assert files.run(*options) == code
    assert said in capsys.readouterr().err
    assert files.leftovers() == set()


def test_a_checkpoint_alone_and_an_output_that_exists_are_refused(
    files: ReleasedFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--checkpoint", "x.pt", "-o", str(files.out)]) == 2
    assert "Add --wan with the Wan2.1-T2V-1.3B folder" in capsys.readouterr().err
    files.out.mkdir()
    assert files.run() == 2
    assert "--overwrite to replace a bundle there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "step"),
    [(errno.EDQUOT, "Free space and run"), (errno.EROFS, "Check that path and its permissions")],
)
def test_what_the_system_refuses_is_a_sentence(
    files: ReleasedFiles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    step: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/full/bundle")

    monkeypatch.setattr(bundle_writer, "write_bundle", refuse)
    assert files.run() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"liveedit: /full/bundle: {os.strerror(number)}. {step}")
