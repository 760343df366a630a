"""Training configurations: plain data, JSON in and out, with named presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from liveedit.errors import UsageError

Stage = Literal["foundation", "causal", "dmd"]
STAGES: tuple[Stage, ...] = ("foundation", "causal", "dmd")
SOURCES: tuple[Literal["paper", "release"], ...] = ("paper", "release")
Forcing = Literal["released", "teacher_forcing"]
# Whether every process holds all weights, or a shard of each tensor (FSDP2).
Parallel = Literal["replicate", "shard"]
# Of weights and activations in a pass. Master weights, optimizer and sums are always fp32.
Precision = Literal["fp32", "bf16"]
LossWeight = Literal["flat", "bell", "noise"]


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A stretch of training with one clip length."""

    steps: int
    num_latent_frames: int
    batch_size: int
    crop_columns: int = 0  # latent columns kept around the edit; 0 keeps all
    on_policy: float = 0.0  # share of samples noised from the model's own estimate
    lr_end: float | None = None  # rate at the end, reached linearly; None keeps the rate

    def __post_init__(self) -> None:
        if min(self.steps, self.num_latent_frames, self.batch_size) < 1:
            raise UsageError("a phase needs steps, num_latent_frames and batch_size of at least 1")
        if self.crop_columns % 2:
            raise UsageError(f"crop_columns must be even, got {self.crop_columns}")


@dataclass(frozen=True, kw_only=True)
class DmdConfig:
    """What only stage ``dmd`` has: distribution matching on the student's own rollouts.

    Every step trains the critic; every ``critic_steps``-th one trains the student first.
    """

    critic_steps: int = 5
    critic_lr: float = 4e-7
    critic_warmup: int = 0  # first steps, in which only the critic learns
    guidance: float = 0.0  # g in c + g (c - u) of the real score; 0: no unconditional pass
    guide: Literal["everywhere", "edit"] = "everywhere"  # or only inside of a local edit's mask
    negative_prompt: str = ""  # u's prompt
    timestep_shift: float = 5.0  # of the level at which the scores are compared
    timestep_min: float = 20.0
    timestep_max: float = 980.0
    rollout_steps: Literal["stream", "warped"] = "stream"  # the stream's list, or that list warped
    # The pass that carries the gradient, earlier ones have none and later ones do not run: one
    # draw for all clips and blocks, one per block, or always the last.
    exit_step: Literal["shared", "per_block", "last"] = "shared"
    context_sigma: float = 0.0  # noise on the finished block when its keys and values are kept
    weight: float = 1.0  # of the distribution-matching loss
    regression: float = 0.0  # of the squared error of the rollout against the target
    flow: float = 0.0  # of the causal stage's own loss
    ema_start: int = 0  # updates of the student before its running mean begins

    def __post_init__(self) -> None:
        if self.critic_steps < 1:
            raise UsageError(f"critic_steps must be at least 1, got {self.critic_steps}")
        if not 0 < self.timestep_min < self.timestep_max <= 1000:
            raise UsageError(
                f"timestep_min {self.timestep_min} and timestep_max {self.timestep_max} must rise "
                "within (0, 1000]"
            )
        if not 0 <= self.context_sigma < 1:
            raise UsageError(f"context_sigma must lie in [0, 1), got {self.context_sigma}")
        if max(self.weight, self.regression, self.flow) <= 0:
            raise UsageError("the student has no loss: weight, regression and flow are all 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of one stage.

    ``foundation`` is full attention with one timestep per clip. ``causal`` is block-causal with a
    timestep per block: ``released`` noises every block by itself, ``teacher_forcing`` shows each
    block the clean blocks before it, as the stream's KV cache will. ``dmd`` rolls the causal
    student out as the stream does and moves its samples towards a teacher's distribution.

    ``loss_weight`` of a level: ``flat``; ``bell`` as released, highest at t = 500, mean 1 over the
    shifted table; ``noise``, the squared error of the predicted noise.
    """

    stage: Stage = "causal"
    forcing: Forcing = "teacher_forcing"
    model: str = "tiny"
    seed: int = 0
    lr: float = 8e-4
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.98)
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema: float = 0.998
    edit_weight: float = 4.0  # extra loss where this edit is
    rival: float = 1.0  # share of it where another edit of the scene would be
    surround: float = 0.0  # share of a rival's on the cells around either, half of it on the next
    # c of the pseudo-Huber loss sqrt(e^2 + c^2) - c of a latent cell's error e; 0: e^2. A mean
    # hedges where it is unsure what is meant, and half an edit is neither; a median decides.
    pseudo_huber: float = 0.0
    # Losses of linear readouts within the network (`distill/probes.py`), of stages ``foundation``
    # and ``causal``: where the words mean, which shape objects have, which colour the words want.
    place_weight: float = 0.0
    shape_weight: float = 0.0
    words_weight: float = 0.0
    channel_weights: tuple[float, ...] = ()  # loss of each latent channel; empty: all alike
    step_share: float = 0.65  # timesteps drawn from the stream's own step list; the rest uniform
    first_step_share: float = 0.5  # of those, drawn at the first step of the list
    timestep_min: float = 20.0  # of the uniform ones, before the shift
    timestep_shift: float = 1.0  # warps the uniform ones towards noise; 1 leaves them
    loss_weight: LossWeight = "flat"
    train_text: bool = True  # False keeps the text encoder as it is
    cached_text: bool = False  # prompt embeddings come from disk; the editor has no text encoder
    context_noise: float = 0.1  # Gaussian noise on clean context, standard deviation
    other_context: float = 0.15  # context that carries another edit or none
    # Context in which the edit has half faded: a share of it, drawn anew, is the source's. A stream
    # that begins to lose its edit learns here to find it again.
    faded_context: float = 0.0
    far_context: float = 0.3  # first block placed far back in time, as a sink of a long stream
    rephrase: float = 0.5  # share of object edits told in freshly drawn words
    drop_prompt: float = 0.0  # share of clips without words, for classifier-free guidance
    # Stage ``causal``: g of g (c - u), a teacher's guidance, learnt into single calls. Clips of one
    # block have it, inside of their edit.
    guidance: float = 0.0
    save_every: int = 200
    log_every: int = 20
    parallel: Parallel = "replicate"
    precision: Precision = "fp32"
    micro_batch_size: int = 0  # clips of one forward pass on each process; 0: its whole share
    gradient_checkpointing: bool = False  # per block: half the memory, a third more time
    dmd: DmdConfig = DmdConfig()
    phases: tuple[PhaseConfig, ...] = field(
        default=(PhaseConfig(steps=1000, num_latent_frames=3, batch_size=8),)
    )

    def __post_init__(self) -> None:
        if not self.phases:
            raise UsageError("phases is empty")
        if self.precision == "bf16" and self.parallel != "shard":
            raise UsageError('precision "bf16" needs parallel "shard", which works alone as well')
        if self.guidance and self.stage != "causal":
            raise UsageError(f"guidance is of stage causal, this is {self.stage}")
        if self.pseudo_huber < 0:
            raise UsageError(f"pseudo_huber must not be negative, got {self.pseudo_huber}")
        for name in ("rival", "surround"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.probed and self.stage == "dmd":
            raise UsageError(
                "place_weight, shape_weight and words_weight are of stages foundation and causal"
            )
        if self.cached_text and self.train_text:
            raise UsageError("cached_text needs train_text false: nothing trains what is cached")
        for name in ("save_every", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def probed(self) -> bool:
        """Whether some readout's loss counts."""
        return bool(self.place_weight or self.shape_weight or self.words_weight)

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> PhaseConfig:
        """The phase that a step belongs to; past the end, the last one."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


# About the square root of the pixel energy that a unit of each latent channel of the default codec
# decodes to: the first three carry brightness and colour, the rest ever finer detail.
_PATCH_CODEC_WEIGHTS = (
    *(5.5, 2.2, 1.7, 0.9, 0.84, 0.51, 0.49, 0.45),
    *(0.40, 0.38, 0.33, 0.30, 0.28, 0.27, 0.26, 0.25),
)


def _cycles(
    count: int,
    singles: int,
    rates: Callable[[float], float],
    on_policy: float = 0.0,
    blocks: int = 0,
) -> tuple[PhaseConfig, ...]:
    """Steps of single latents, of single blocks, and two of whole clips, in turn.

    Args:
        rates: the learning rate by the share of the cycles that are done, 0 to 1.
    """
    phases: list[PhaseConfig] = []
    for cycle in range(1, count + 1):
        rate: dict[str, Any] = {"lr_end": rates(cycle / count)}
        crop = rate | {"crop_columns": 20}
        phases.append(PhaseConfig(steps=singles, num_latent_frames=1, batch_size=24, **crop))
        if blocks:
            crop |= {"on_policy": on_policy}
            phases.append(PhaseConfig(steps=blocks, num_latent_frames=3, batch_size=8, **crop))
        rate |= {"on_policy": on_policy}
        phases.append(PhaseConfig(steps=2, num_latent_frames=6, batch_size=4, **rate))
    return tuple(phases)


def _falling(high: float, low: float, held: float = 0.0) -> Callable[[float], float]:
    """A rate that stays high for a share of the run, then falls in a line."""
    return lambda done: high + (low - high) * max(0.0, done - held) / (1.0 - held)


def _tiny_foundation() -> TrainConfig:
    """Full attention: single latents, which teach words fastest, then whole clips in turn.

    What an edit does is decided at the first of the stream's steps, where the noise hides
    everything but source and words: most timesteps are drawn there.
    """
    high = 7e-4
    singles = PhaseConfig(steps=8000, num_latent_frames=1, batch_size=24, crop_columns=20)
    return TrainConfig(
        stage="foundation",
        seed=7,
        lr=high,
        warmup_steps=200,
        step_share=0.8,
        first_step_share=0.75,
        words_weight=0.05,
        rephrase=0.6,
        drop_prompt=0.08,
        save_every=100,
        channel_weights=_PATCH_CODEC_WEIGHTS,
        phases=(singles, *_cycles(270, 20, _falling(high, 3.5e-4))),
    )


def _tiny_causal() -> TrainConfig:
    """Teacher forcing from the foundation's weights; single latents keep the words alive.

    With light readouts, an error that decides, and rivals and surroundings that weigh: together
    they keep an edit to what the words mean.
    """
    high = 5e-4
    return TrainConfig(
        stage="causal",
        seed=18,
        lr=high,
        warmup_steps=30,
        ema=0.995,
        edit_weight=13.5,
        rival=2 / 3,
        surround=0.5,
        pseudo_huber=0.1,
        place_weight=0.15,
        shape_weight=0.03,
        words_weight=0.05,
        step_share=0.8,
        rephrase=0.6,
        first_step_share=0.65,
        faded_context=0.3,
        save_every=150,
        channel_weights=_PATCH_CODEC_WEIGHTS,
        phases=_cycles(350, 14, _falling(high, 1e-5, held=0.4), on_policy=0.3, blocks=4),
    )


def _tiny_causal_guided() -> TrainConfig:
    """The causal student again, now towards the velocities of its guided teacher."""
    high = 1.5e-4
    return replace(
        _tiny_causal(),
        seed=141,
        lr=high,
        edit_weight=10.0,
        rival=1.0,
        guidance=0.7,
        phases=_cycles(20, 18, _falling(high, 1e-5, held=0.3), on_policy=0.3),
    )


def _tiny_dmd() -> TrainConfig:
    """A careful fine-tune: low rate, frozen words, and mostly the error against the target.

    With targets known, the regression term holds the student where it is good; the scores add
    what a mean cannot have. At weight 1 they cost more than they gave.
    """
    high = 6e-5
    rates = _falling(high, 4e-6, held=0.3)
    phases: list[PhaseConfig] = []
    for cycle in range(1, 13):
        common: dict[str, Any] = {"crop_columns": 20, "lr_end": rates(cycle / 12)}
        phases += [
            PhaseConfig(steps=4, num_latent_frames=3, batch_size=8, **common),
            PhaseConfig(steps=1, num_latent_frames=6, batch_size=4, **common),
        ]
    return TrainConfig(
        stage="dmd",
        seed=13,
        lr=high,
        betas=(0.9, 0.99),
        warmup_steps=20,
        ema=0.97,
        other_context=0.0,
        edit_weight=13.5,
        rival=2 / 3,
        surround=0.5,
        pseudo_huber=0.1,
        save_every=20,
        log_every=5,
        train_text=False,
        channel_weights=_PATCH_CODEC_WEIGHTS,
        phases=tuple(phases),
        dmd=DmdConfig(
            critic_steps=1,
            critic_lr=1e-4,
            critic_warmup=20,
            guidance=1.5,
            guide="edit",
            timestep_shift=1.0,
            context_sigma=0.005,
            weight=0.25,
            regression=1.0,
        ),
    )


def _large(stage: Stage, source: Literal["paper", "release"]) -> TrainConfig:
    """Wan2.1-T2V-1.3B, clips of 21 latent frames (81 frames of 480 x 832), batch 8, AdamW.

    ``paper``: arXiv 2606.26740, section on experiments: lr 1e-5 in every stage; 9 000, then
    20 000, then 10 000 steps; the first objective written on the noise with t in [0, 1000]; teacher
    forcing in the second; the third from the stream's own steps [1000, 750, 500, 250].

    ``release``: the published configurations: lr 2e-6, betas 0.9 and 0.999, decay 0.01, clip 10;
    levels uniform in a table of shift 8 with a bell weight; independently noised blocks; the third
    with lr 4e-7 for the critic, betas 0 and 0.999, five critic updates per student update, guidance
    3 against a negative prompt (``negative_prompt``: give the base model's), levels of shift 5 in
    [20, 980], rollouts over the warped steps with one exit for all blocks and 0.00498 of noise on
    the context, EMA 0.99 from update 200 on, 2 000 steps, save every 50. It names no length for the
    first two stages: the paper's stands here.

    Neither gives an EMA for the first two stages; 0.99 stands here. Neither trains the text
    encoder.
    What the paper leaves open in the third stage is as released.
    """
    released = source == "release"
    steps = {"foundation": 9000, "causal": 20000, "dmd": 2000 if released else 10000}[stage]
    common: dict[str, Any] = {
        "stage": stage,
        "model": "liveedit-1.3b",
        "lr": 2e-6 if released else 1e-5,
        "weight_decay": 0.01,
        "betas": (0.0 if stage == "dmd" else 0.9, 0.999),
        "warmup_steps": 1,
        "clip_norm": 10.0,
        "ema": 0.99,
        "edit_weight": 0.0,
        "step_share": 0.0,
        "timestep_min": 1.0,
        "timestep_shift": 8.0 if released else 1.0,
        "loss_weight": "bell" if released else "noise",
        "forcing": "released" if released else "teacher_forcing",
        "train_text": False,
        "cached_text": True,
        "context_noise": 0.0,
        "other_context": 0.0,
        "far_context": 0.0,
        "rephrase": 0.0,
        "save_every": 50 if stage == "dmd" else 200,
        "parallel": "shard",
        "precision": "bf16",
        "gradient_checkpointing": True,
        "phases": (PhaseConfig(steps=steps, num_latent_frames=21, batch_size=8),),
    }
    if stage == "dmd":
        common["dmd"] = DmdConfig(
            critic_steps=5,
            critic_lr=4e-7 if released else 1e-5,
            guidance=3.0,
            rollout_steps="warped" if released else "stream",
            context_sigma=0.00498 if released else 0.0,
            ema_start=200 if released else 0,
        )
    return TrainConfig(**common)


def _smoke(stage: Stage) -> TrainConfig:
    """Seconds: that the stage runs, and its figures go down."""
    return TrainConfig(
        stage=stage,
        lr=1e-3,
        channel_weights=_PATCH_CODEC_WEIGHTS,
        warmup_steps=5,
        save_every=8,
        log_every=2,
        train_text=stage != "dmd",
        phases=(
            PhaseConfig(steps=14, num_latent_frames=3, batch_size=2, crop_columns=8),
            PhaseConfig(steps=2, num_latent_frames=6, batch_size=2, crop_columns=8),
        ),
        dmd=DmdConfig(critic_steps=2, critic_lr=5e-4, regression=1.0, weight=0.1, exit_step="last"),
    )


PRESETS: dict[str, TrainConfig] = {
    "tiny-foundation": _tiny_foundation(),
    "tiny-causal": _tiny_causal(),
    "tiny-causal-guided": _tiny_causal_guided(),
    "tiny-dmd": _tiny_dmd(),
    "tiny-smoke-foundation": _smoke("foundation"),
    "tiny-smoke-causal": _smoke("causal"),
    "tiny-smoke-dmd": _smoke("dmd"),
    **{
        f"liveedit-1.3b-{stage}-{source}": _large(stage, source)
        for stage in STAGES
        for source in SOURCES
    },
}


def preset(name: str) -> TrainConfig:
    """A named configuration.

    Raises:
        UsageError: no preset has that name.
    """
    if name not in PRESETS:
        raise UsageError(f"no training preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
