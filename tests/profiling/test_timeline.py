"""The HTML page in a real browser: no console errors, a timeline that can be seen."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from browser import CHROMIUM, visit
from nsys_capture import stream_capture

from liveedit.cli import main


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    stream_capture(root / "run.sqlite")
    prefix = str(root / "out")
    assert main(["profile", "nsys", "--from", str(root / "run.sqlite"), "-o", prefix]) == 0
    return root / "out.html"


def test_page_is_self_contained(page_file: Path) -> None:
    text = page_file.read_text()
    assert not re.search(r"""(src|href)=|https?://|@import|fetch\(""", text)
    assert text.count("</script>") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_page_in_a_browser(page_file: Path, tmp_path: Path) -> None:
    seen = visit(page_file, tmp_path)
    assert seen.console == []
    drawn = re.search(r'data-drawn="(\d+)"', seen.dom)
    assert drawn is not None
    assert int(drawn[1]) > 50  # events of the chunk in view
    assert "pruned pass" in seen.dom
    # The plot itself: bars of the kernel classes' colours, not an empty canvas.
    picture = (matplotlib.image.imread(seen.screenshot)[..., :3] * 255).round().astype(int)
    for colour in ((0x3B, 0x82, 0xF6), (0xF5, 0x9E, 0x0B), (0x10, 0xB9, 0x81)):
        rows = np.flatnonzero((picture == colour).all(axis=-1).any(axis=1))
        assert len(rows) > 40  # the legend alone has 33
