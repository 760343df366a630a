"""Which linears can be quantised: each alone, judged by the edited video, then the largest set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import Manifest
from liveedit.export.edit_quality import Limits, Quality, compare, refusals, score
from liveedit.export.graph_trial import Clip, Trial, load_step
from liveedit.export.quantize import Format, SiteScale, quantise
from liveedit.runtime.backend import Frames

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """``edited_db``: PSNR against high precision in the edited region with this layer alone."""

    layer: str
    edited_db: float


class Bench:
    """Edits the same clips with different sets of quantised linears."""

    def __init__(
        self,
        trial: Trial,
        root: Path,
        manifest: Manifest,
        precision: str,
        mask_cache: str,
        clips: Sequence[Clip],
    ) -> None:
        self._trial, self._root, self._manifest = trial, root, manifest
        self._precision, self._mask_cache, self._clips = precision, mask_cache, clips
        trial.backend.swap(load_step(root, manifest, precision))
        self._reference: list[Frames] = [trial.edit(clip) for clip in clips]

    def measure(
        self,
        layers: Sequence[str],
        scales: Mapping[str, SiteScale],
        form: Format,
        *,
        drift: bool = False,
    ) -> list[Quality]:
        """Quality of every clip with the named linears quantised."""
        model = load_step(self._root, self._manifest, self._precision)
        quantise(model, layers, scales, form)
        self._trial.backend.swap(model)
        return [
            compare(
                clip.name, self._mask_cache, clip.frames, reference, self._trial.edit(clip),
                drift=drift,
            )
            for clip, reference in zip(self._clips, self._reference, strict=True)
        ]  # fmt: skip


def rank(
    bench: Bench,
    layers: Sequence[str],
    scales: Mapping[str, SiteScale],
    form: Format,
    progress: Progress = lambda message: None,
) -> list[Sensitivity]:
    """Every layer alone, the most sensitive first."""
    out = []
    for number, layer in enumerate(layers, start=1):
        value = score(bench.measure([layer], scales, form))
        progress(f"sensitivity {number} of {len(layers)}: {layer} {value:.2f} dB")
        out.append(Sensitivity(layer=layer, edited_db=value))
    return sorted(out, key=lambda s: (s.edited_db, s.layer))


def largest_set(
    bench: Bench,
    ranked: Sequence[Sensitivity],
    scales: Mapping[str, SiteScale],
    form: Format,
    limits: Limits,
    progress: Progress = lambda message: None,
) -> tuple[str, ...]:
    """All layers but the fewest most sensitive ones that keeps the limits; empty if none does.

    Bisects on the number left out, since leaving out more is not worse but for noise.
    """
    low, high = 0, len(ranked)  # low may be too few left out, high is enough
    while low < high:
        middle = (low + high) // 2
        kept = [s.layer for s in ranked[middle:]]
        measured = bench.measure(kept, scales, form)
        good = not refusals(measured, limits)
        progress(
            f"{len(kept)} of {len(ranked)} layers: {score(measured):.2f} dB, "
            f"{'good' if good else 'too far from high precision'}"
        )
        low, high = (low, middle) if good else (middle + 1, high)
    return tuple(sorted(s.layer for s in ranked[low:]))
