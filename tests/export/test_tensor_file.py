"""Every kind of file that is not a checkpoint gives one sentence and runs nothing."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from liveedit.errors import CheckpointError
from liveedit.export.tensor_file import read_tensor_file

TENSORS = {"a": torch.arange(700.0), "b.c": torch.ones(3, 5, dtype=torch.bfloat16)}


def refuse(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tensor_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_torch_files(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.bin"  # the name says nothing
    torch.save(TENSORS, path, _use_new_zipfile_serialization=not legacy)
    found = read_tensor_file(path)
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[k], TENSORS[k]) for k in TENSORS)


def test_reads_safetensors_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    save_file(TENSORS, path)
    assert torch.equal(read_tensor_file(path)["b.c"], TENSORS["b.c"])
    refuse(tmp_path, "holds 0 safetensors files")
    path.rename(tmp_path / "model.safetensors")
    (tmp_path / "unrelated.pth").write_bytes(b"x")
    assert set(read_tensor_file(tmp_path)) == set(TENSORS)


def sharded(folder: Path) -> Path:
    placed = {"a": "m-00001-of-00002.safetensors", "b.c": "m-00002-of-00002.safetensors"}
    for name, shard in placed.items():
        save_file({name: TENSORS[name]}, folder / shard)
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


def test_reads_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    found = read_tensor_file(tmp_path)
    assert all(torch.equal(found[k], TENSORS[k]) for k in TENSORS)


def test_refuses_broken_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    second = tmp_path / "m-00002-of-00002.safetensors"
    second.rename(tmp_path / "elsewhere")
    refuse(tmp_path, "lacks m-00002-of-00002.safetensors of the 2 shards")
    save_file({"other": torch.ones(1)}, second)
    refuse(tmp_path, r"disagree about b\.c, other")
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    refuse(tmp_path, "outside its folder")
    for wrong in ("{", "[]", '{"weight_map": {"a": 1, "b": "x"}}', "{}"):
        index.write_text(wrong)
        refuse(tmp_path, "is not an index")


def test_refuses_what_is_not_there_or_not_readable(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.pt", "does not exist")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_refuses_truncated_torch_files(tmp_path: Path, legacy: bool, kept: float) -> None:
    path = tmp_path / "cut.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refuse(path, "not a complete checkpoint")


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_refuses_truncated_safetensors(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refuse(path, "not a complete safetensors file")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"hello " * 50, b"<!DOCTYPE html>\n", b"\x80\x02}q\x00.", b"12345678{"],
)
def test_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    refuse(path, "not a complete (checkpoint|safetensors file)")


def test_refuses_another_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse(path, "not a complete checkpoint")


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "was_run"
    torch.save({"a": Code(trace)}, path, _use_new_zipfile_serialization=not legacy)
    refuse(path, r"holds Python code \(\w+\.mkdir\)")
    assert not trace.exists()


def test_refuses_a_bare_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.ones(3), path)
    refuse(path, "holds a Tensor; expected a state dict")
