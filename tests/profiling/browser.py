"""Opens a page in headless Chromium."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars "
    "--enable-logging=stderr --window-size=1400,1100 --virtual-time-budget=2000"
).split()


@dataclass
class Visit:
    """What the browser made of a page: its document, console lines and a screenshot."""

    dom: str
    console: list[str]
    screenshot: Path


def visit(page: Path, work: Path) -> Visit:
    """Load a local page twice: for its document, and for a picture of it."""
    assert CHROMIUM is not None
    outs = []
    for i, action in enumerate(("--dump-dom", f"--screenshot={work / 'page.png'}")):
        profile = f"--user-data-dir={work / f'profile{i}'}"
        outs.append(
            subprocess.run(
                [CHROMIUM, *FLAGS, profile, action, page.as_uri()],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
        )
    console = [x for out in outs for x in re.findall(r".*CONSOLE.*", out.stderr)]
    return Visit(dom=outs[0].stdout, console=console, screenshot=work / "page.png")
