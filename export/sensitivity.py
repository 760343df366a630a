"""Which linears can be quantised: each alone, judged by the edited video, then the largest set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import Manifest
from liveedit.evaluation.known_edits import EditScore, score_edit
from liveedit.export.edit_quality import Quality, compare, score
from liveedit.export.graph_trial import Clip, Trial, load_step
from liveedit.export.quantize import Format, SiteScale, quantise
from liveedit.export.verdict import Limits, benchmark, clip_refusals
from liveedit.runtime.backend import Frames

Progress = Callable[[str], None]
TUNED_SHARE = 0.6  # of a limit that a set may use up on the few edits it is chosen by


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
        self._reference: list[tuple[Frames, EditScore | None]] = []
        for clip in clips:
            frames = trial.edit(clip)
            exact = None if clip.known is None else score_edit(clip.known, frames)
            self._reference.append((frames, exact))

    def measure(
        self, layers: Sequence[str], scales: Mapping[str, SiteScale], form: Format
    ) -> list[Quality]:
        """Quality of every clip with the named linears quantised."""
        model = load_step(self._root, self._manifest, self._precision)
        quantise(model, layers, scales, form)
        self._trial.backend.swap(model)
        return [
            compare(clip, self._mask_cache, frames, self._trial.edit(clip), exact)
            for clip, (frames, exact) in zip(self._clips, self._reference, strict=True)
        ]


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


def suits(measured: Sequence[Quality], limits: Limits) -> bool:
    """Whether a set of layers may go before the verdict."""
    known = benchmark(measured)
    lost = 0.0 if known is None or known.region_db is None else known.region_db.loss
    return lost <= TUNED_SHARE * limits.region_loss_db and not clip_refusals(measured, limits)


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
        good = suits(measured, limits)
        progress(
            f"{len(kept)} of {len(ranked)} layers: {score(measured):.2f} dB, "
            f"{'good' if good else 'too far from high precision'}"
        )
        low, high = (low, middle) if good else (middle + 1, high)
    return tuple(sorted(s.layer for s in ranked[low:]))
