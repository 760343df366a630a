"""The verdict on a quantised bundle: what was measured, and every limit that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from liveedit.evaluation.known_edits import EditScore
from liveedit.export.drift import Drift
from liveedit.export.edit_quality import Quality


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a quantised bundle is refused.

    On edits whose exact result is known, what it may lose against high precision, all means:
    ``region_loss_db`` and ``background_loss_db`` of PSNR, ``ssim_loss`` of SSIM in either,
    ``accuracy_loss_points`` per cent of the edits that do what was said.

    On clips without a known result: ``edited_db`` is the least PSNR between the two edits in the
    edited region of each (an error 9 dB below that of the edit itself costs it 0.5 dB; 30 dB is
    that for an edit of 21 dB), and ``background_loss_db`` holds for each clip against its source.

    ``drift_db``: most by which a long stream may get worse beyond what high precision does.
    ``speedup``: least, end to end, where it was measured.
    """

    region_loss_db: float = 0.5
    background_loss_db: float = 0.3
    ssim_loss: float = 0.01
    accuracy_loss_points: float = 2.0
    edited_db: float = 30.0
    drift_db: float = 0.5
    speedup: float = 1.1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The mean of one figure over the edits that have it in both precisions."""

    count: int
    base: float
    quantised: float
    error: float  # standard error of the mean difference

    @property
    def loss(self) -> float:
        return self.base - self.quantised


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Edits with known results, in both precisions. Shares in [0, 1], PSNR in dB."""

    mask_cache: str
    edits: int
    named_colour: Pair | None
    followed: Pair | None
    region_db: Pair | None
    region_ssim: Pair | None
    background_db: Pair | None
    background_ssim: Pair | None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Frames per second end to end; None with the reason in ``not_measured``."""

    base_fps: float | None = None
    quantised_fps: float | None = None
    not_measured: str = ""

    @property
    def speedup(self) -> float | None:
        if self.base_fps is None or self.quantised_fps is None:
            return None
        return self.quantised_fps / self.base_fps


NO_SPEED = Speed(not_measured="not asked for")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``refused`` holds one sentence for each broken limit; empty for a good bundle."""

    limits: Limits
    quality: tuple[Quality, ...]
    benchmark: Benchmark | None = None
    drift: Drift | None = None
    speed: Speed = NO_SPEED
    refused: tuple[str, ...] = field(default_factory=tuple)


def benchmark(measured: Sequence[Quality]) -> Benchmark | None:
    """The means of all edits with a known result; None without any."""
    known = [(q.base, q.quantised) for q in measured if q.base and q.quantised]
    if not known:
        return None

    def pair(read: Callable[[EditScore], float | bool | None]) -> Pair | None:
        both = [(read(b), read(q)) for b, q in known]
        values = np.array([(b, q) for b, q in both if b is not None and q is not None], float)
        if not len(values):
            return None
        base, quantised = values.mean(axis=0)
        error = np.std(values[:, 0] - values[:, 1]) / np.sqrt(len(values))
        return Pair(
            count=len(values), base=float(base), quantised=float(quantised), error=float(error)
        )

    return Benchmark(
        mask_cache=next(q.mask_cache for q in measured if q.base),
        edits=len(known),
        named_colour=pair(lambda s: s.named_colour),
        followed=pair(lambda s: s.followed),
        region_db=pair(lambda s: s.region_db),
        region_ssim=pair(lambda s: s.region_ssim),
        background_db=pair(lambda s: s.background_db),
        background_ssim=pair(lambda s: s.background_ssim),
    )


def reach(
    limits: Limits,
    quality: Sequence[Quality],
    drift: Drift | None = None,
    speed: Speed = NO_SPEED,
) -> Verdict:
    """Judge what was measured. A speed that was not measured is not judged."""
    found = benchmark(quality)
    refused = clip_refusals(quality, limits)
    if found is not None:
        refused += benchmark_refusals(found, limits)
    if drift is not None and drift.excess_db > limits.drift_db:
        refused.append(
            f"over {drift.chunks} chunks it loses {drift.excess_db:.2f} dB more than high "
            f"precision does, {limits.drift_db:g} is allowed"
        )
    if speed.speedup is not None and speed.speedup < limits.speedup:
        refused.append(
            f"it runs at {speed.quantised_fps:.4g} frames per second, {speed.speedup:.2f} times "
            f"the {speed.base_fps:.4g} of high precision; {limits.speedup:g} times is asked"
        )
    return Verdict(
        limits=limits,
        quality=tuple(quality),
        benchmark=found,
        drift=drift,
        speed=speed,
        refused=tuple(refused),
    )


def clip_refusals(measured: Sequence[Quality], limits: Limits) -> list[str]:
    """Clips without a known result that differ too much."""
    out = []
    for q in measured:
        if q.base is not None:
            continue
        where = f"{q.clip}, mask cache {q.mask_cache}"
        # A clip that the edit leaves alone is judged as a whole.
        value = q.agreement_db if q.edited_db is None else q.edited_db
        if value < limits.edited_db:
            out.append(
                f"{where}: the edited region differs from high precision by {value:.2f} dB PSNR, "
                f"at least {limits.edited_db:g} is asked"
            )
        loss = q.background_loss_db
        if loss is not None and loss > limits.background_loss_db:
            out.append(
                f"{where}: the background loses {loss:.2f} dB against the source, "
                f"{limits.background_loss_db:g} is allowed"
            )
    return out


def benchmark_refusals(found: Benchmark, limits: Limits) -> list[str]:
    """Means over edits with a known result that fall too far."""
    out = []
    for what, pair, allowed in (
        ("edited region", found.region_db, limits.region_loss_db),
        ("background", found.background_db, limits.background_loss_db),
    ):
        if pair is not None and pair.loss > allowed:
            out.append(
                f"on {pair.count} edits with known results the {what} loses {pair.loss:.2f} dB "
                f"PSNR ({pair.base:.2f} to {pair.quantised:.2f}), {allowed:g} is allowed"
            )
    for what, pair in (("edited region", found.region_ssim), ("background", found.background_ssim)):
        if pair is not None and pair.loss > limits.ssim_loss:
            out.append(
                f"on {pair.count} edits with known results the {what} loses {pair.loss:.4f} of "
                f"SSIM, {limits.ssim_loss:g} is allowed"
            )
    for what, pair in (
        ("reach the named colour", found.named_colour),
        ("come nearer to the result than to the source", found.followed),
    ):
        if pair is None:
            continue
        # One edit fewer is the least that can be seen: it alone never refuses.
        allowed = max(limits.accuracy_loss_points, 100 / pair.count)
        if 100 * pair.loss > allowed + 1e-9:
            out.append(
                f"of {pair.count} edits {100 * pair.quantised:.1f} % {what}, "
                f"{100 * pair.base:.1f} % in high precision; a loss of {allowed:.3g} points is "
                "allowed"
            )
    return out
