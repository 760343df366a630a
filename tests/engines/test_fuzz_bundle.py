from __future__ import annotations

from pathlib import Path

import pytest

from liveedit.bundle import MANIFEST, read_manifest
from liveedit.engines.fuzz import PLUGINS, Loader, fuzz, write_sample
from liveedit.errors import BundleError


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    write_sample(tmp_path)
    return tmp_path


def test_ten_thousand_changed_bytes_are_all_refused(sample: Path) -> None:
    report = fuzz(sample, 10_000)
    assert report.accepted == []
    assert report.crashed == []
    assert sum(report.refused.values()) == 10_000
    assert set(report.refused) == {"json", "onnx", "data", "plan", "so"}
    assert min(report.refused.values()) > 1000


def test_every_file_is_refused_cut_short_or_grown(sample: Path) -> None:
    loader = Loader(sample)
    names = [MANIFEST, PLUGINS, *loader.manifest.files]
    names = [n for n in names if not n.endswith((".layers.json", "tokenizer.json"))]
    assert len(names) == 5
    for name in names:
        data = (sample / name).read_bytes()
        for changed in (b"", data[:-1], data + b" ", data + data):
            (sample / name).write_bytes(changed)
            with pytest.raises(BundleError):
                loader.load(name)
        (sample / name).unlink()
        if name != PLUGINS:
            with pytest.raises(BundleError):
                loader.load(name)
        (sample / name).write_bytes(data)
    loader.load()


def test_a_manifest_that_reads_the_same_but_is_written_otherwise_is_refused(sample: Path) -> None:
    path = sample / MANIFEST
    text = path.read_text()
    for changed in (
        text.replace("1e-06", "1E-06", 1),
        text.replace("\n", " \n", 1),
        text.replace('"schema"', '"schema": 1,\n "schema"', 1),
        text + "\n",
    ):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(BundleError, match="was changed after it was written"):
            read_manifest(sample)
