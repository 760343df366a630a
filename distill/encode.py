"""Draw scenes and code them: `python -m liveedit.distill.encode --codec C --out FOLDER`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from liveedit.config import named_config
from liveedit.distill.checkpoint import load_state
from liveedit.distill.edits import SceneConfig
from liveedit.distill.footage import real_footage
from liveedit.distill.latents import ALL_TURNS, AS_DRAWN, fill_cache
from liveedit.errors import CheckpointError, UsageError
from liveedit.models.patch_codec import PatchCodec


def load_codec(path: Path, model_name: str = "tiny", *, encoder_only: bool = False) -> PatchCodec:
    """The frozen codec of a configuration.

    Args:
        path: a state dict.
        encoder_only: only the encoder's tensors are needed, and the decoder stays random.

    Raises:
        CheckpointError: the file does not hold that codec.
    """
    model, _ = named_config(model_name)
    if model.patch is None:
        raise UsageError(f"{model_name!r} has no patch codec; train the editor of 'tiny'")
    codec = PatchCodec(model.patch)
    state = load_state(path)
    try:
        if encoder_only:
            part = {k: v for k, v in state.items() if k.startswith("encoder.")}
            codec.encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in part.items()})
        else:
            codec.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not hold the codec of {model_name!r}: {error}"
        ) from None
    return codec.eval().requires_grad_(False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="cache of clips and photos")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--num-frames", type=int, default=24, help="pixel frames of a scene")
    parser.add_argument("--edits", type=int, default=3)
    parser.add_argument(
        "--lookalikes", type=float, default=0.0, help="share of scenes told apart by shape alone"
    )
    parser.add_argument(
        "--swaps", type=float, default=0.0, help="share of scenes told apart by word order alone"
    )
    parser.add_argument(
        "--turned",
        action="store_true",
        help="each scene also mirrored, backwards, and both: four for little more than one",
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _, stream = named_config(options.model)
    config = SceneConfig(
        num_frames=options.num_frames,
        height_px=stream.height_px,
        width_px=stream.width_px,
        edits_per_scene=options.edits,
        lookalike_share=options.lookalikes,
        swap_share=options.swaps,
    )
    codec = load_codec(options.codec, options.model, encoder_only=True)
    footage = real_footage(options.sources, "train", stream.height_px, stream.width_px)
    seeds = range(options.first, options.first + options.count)
    turns = ALL_TURNS if options.turned else AS_DRAWN
    started = time.monotonic()
    for done, seed in enumerate(fill_cache(options.out, codec, footage, config, seeds, turns), 1):
        if done % 20 == 0:
            print(f"scene {seed}: {(time.monotonic() - started) / done:.2f} s each", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
