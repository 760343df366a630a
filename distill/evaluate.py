"""Judge a trained editor on held-out scenes: `python -m liveedit.distill.evaluate --help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from liveedit.config import ModelConfig, StreamConfig, named_config
from liveedit.distill.checkpoint import load_state
from liveedit.distill.editor import Editor
from liveedit.distill.edits import Edit, Scene, SceneConfig, make_scene
from liveedit.distill.encode import load_codec
from liveedit.distill.footage import real_footage
from liveedit.distill.latents import to_tensor
from liveedit.distill.rollout import from_generator, stream_edit
from liveedit.distill.scenes import Bytes
from liveedit.distill.sources import load_clip
from liveedit.errors import UsageError
from liveedit.evaluation.known_edits import named_colour_seen
from liveedit.evaluation.quality import SURE, closer_to_target, flicker, psnr, ssim
from liveedit.models.patch_codec import PatchCodec


class TorchStream:
    """Codec, editor and tokenizer as one function from frames and words to frames."""

    def __init__(
        self, editor: Editor, codec: PatchCodec, tokenizer: Tokenizer, stream: StreamConfig
    ) -> None:
        self.editor, self.codec = editor.eval(), codec
        self.tokenizer, self.stream = tokenizer, stream

    @torch.inference_mode()
    def reconstruct(self, frames: Bytes) -> Bytes:
        """The codec alone: [T, H, W, 3] -> the same frames, coded and decoded."""
        return _frames(self.codec.decode(self.codec.encode(to_tensor(frames))))

    @torch.inference_mode()
    def edit(self, frames: Bytes, prompt: str, seed: int = 0) -> Bytes:
        """Stream [T, H, W, 3], T a multiple of four times the block, through the editor."""
        source = self.codec.encode(to_tensor(frames))
        embeds = self.editor.embed(self.tokenizer, [prompt])
        rng = torch.Generator().manual_seed(seed)
        edited = stream_edit(self.editor.dit, embeds, source, self.stream, from_generator(rng))
        return _frames(self.codec.decode(edited))


def _frames(video: torch.Tensor) -> Bytes:
    array: Bytes = (video[0].permute(1, 2, 3, 0) * 255 + 0.5).to(torch.uint8).numpy()
    return array


def load_stream(checkpoint: Path, codec: Path, model_name: str = "tiny") -> TorchStream:
    """The mean weights of a run, its tokenizer (beside it) and a codec."""
    model: ModelConfig
    model, stream = named_config(model_name)
    editor = Editor(model)
    state = load_state(checkpoint)
    editor.dit.load_state_dict(state["ema"]["dit"])
    editor.text.load_state_dict(state["ema"]["text"])
    tokenizer = Tokenizer.from_file(str(checkpoint.parent / "tokenizer.json"))
    return TorchStream(editor, load_codec(codec, model_name), tokenizer, stream)


def judge(scene: Scene, edit: Edit, output: Bytes, reconstruction: Bytes) -> dict[str, Any]:
    """The figures of one edit. ``reconstruction`` is the codec's version of the target."""
    source, target, mask = scene.source, edit.target, edit.mask
    sure, outside = mask >= SURE, mask == 0
    named = named_colour_seen(edit.kind, edit.new_colour, output, target, mask)
    return {
        "kind": edit.kind,
        "instruction": edit.instruction,
        "named_colour": named,
        "closer_to_target": closer_to_target(output, source, target, mask),
        "region_psnr": psnr(output, target, sure),
        "region_psnr_unedited": psnr(source, target, sure),
        "region_psnr_codec": psnr(reconstruction, target, sure),
        "background_psnr": psnr(output, target, outside),
        "background_psnr_codec": psnr(reconstruction, target, outside),
        "background_ssim": ssim(output, target, outside),
        "background_ssim_codec": ssim(reconstruction, target, outside),
        "flicker": flicker(output, target),
        "flicker_codec": flicker(reconstruction, target),
    }


def table(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Means per kind and over all; shares for the yes-no figures; empty cells are left out."""
    rows = list(rows)
    out: dict[str, dict[str, float | int]] = {}
    for kind in [*sorted({r["kind"] for r in rows}), "all"]:
        chosen = [r for r in rows if kind in ("all", r["kind"])]
        cells: dict[str, float | int] = {"count": len(chosen)}
        for name in chosen[0]:
            if name in ("kind", "instruction"):
                continue
            values = [r[name] for r in chosen if r[name] is not None and np.isfinite(r[name])]
            if values:
                cells[name] = round(float(np.mean(values)), 4)
                if name in ("named_colour", "closer_to_target"):
                    cells[f"{name}_count"] = len(values)
        out[kind] = cells
    return out


def sheet(path: Path, rows: list[tuple[str, list[Bytes]]]) -> None:
    """A PNG with one row of frames per entry, its words written on the first frame."""
    from PIL import Image, ImageDraw

    pictures = []
    for words, frames in rows:
        image = Image.fromarray(np.concatenate(frames, axis=1))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, 6 * len(words) + 6, 12), fill=(0, 0, 0))
        draw.text((3, 0), words, fill=(255, 255, 255))
        pictures.append(np.asarray(image))
    Image.fromarray(np.concatenate(pictures, axis=0)).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="cache of clips and photos")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics and pictures")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--num-frames", type=int, default=24, help="a multiple of 12")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.num_frames % 12:
        raise UsageError(f"--num-frames must be a multiple of 12, got {options.num_frames}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    stream = load_stream(options.checkpoint, options.codec)
    size = (stream.stream.height_px, stream.stream.width_px)
    footage = real_footage(options.sources, "held_out", *size)
    config = SceneConfig(
        num_frames=options.num_frames,
        height_px=size[0],
        width_px=size[1],
        edits_per_scene=2,
        split="held_out",
    )
    rows, pictures = [], []
    for seed in range(options.scenes):
        scene = make_scene(seed, footage, config)
        for edit in scene.edits:
            output = stream.edit(scene.source, edit.instruction, seed)
            coded = stream.reconstruct(edit.target)
            rows.append(judge(scene, edit, output, coded))
            shown = [scene.source[-6], edit.target[-6], coded[-6], output[-6]]
            pictures.append((f"{edit.instruction}  [{rows[-1]['named_colour']}]", shown))
    for i in range(0, len(pictures), 10):
        sheet(options.out / f"held_out_{i // 10}.png", pictures[i : i + 10])
    clip = np.asarray(load_clip("box", options.sources, *size, 48))
    demo = []
    for prompt in ("make the yellow box blue", "turn the yellow box red", "make it sepia"):
        edited = stream.edit(clip, prompt)
        demo.append((prompt, [clip[8], edited[8], clip[40], edited[40]]))
    sheet(options.out / "box.png", demo)
    result = {
        "step": load_state(options.checkpoint)["step"],
        "num_frames": options.num_frames,
        "table": table(rows),
        "rows": rows,
    }
    (options.out / "metrics.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result["table"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
