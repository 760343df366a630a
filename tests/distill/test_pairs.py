"""Training on a list of clips: what is wrong is said at once, what is coded is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import CODEC, CONFIG, MODEL, STREAM, random_scenes
from tokenizers import Tokenizer

from liveedit import config as config_module
from liveedit.cli import main
from liveedit.config import WanVAEConfig, to_dict
from liveedit.distill.latents import SceneFolder, load_scene
from liveedit.distill.pair_cache import PairCache
from liveedit.distill.pairs import read_pairs
from liveedit.distill.parallel import Processes
from liveedit.distill.presets import DmdConfig, PhaseConfig, TrainConfig
from liveedit.distill.text_cache import TextCache, fill_text_cache, text_folder
from liveedit.errors import UsageError
from liveedit.export.checkpoints import load_dit
from liveedit.export.tokenizer import byte_tokenizer
from liveedit.models.dit import CausalWanDiT
from liveedit.models.patch_codec import PatchCodec
from liveedit.models.umt5 import UMT5Encoder
from liveedit.models.wan_vae import WanVAE

MakeClip = Callable[..., Path]
WAN_MODEL = replace(MODEL, name="mini-wan", patch=None, wan_vae=WanVAEConfig(base_dim=8))


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.MODELS, "mini", (MODEL, STREAM))
    monkeypatch.setitem(config_module.MODELS, "mini-wan", (WAN_MODEL, STREAM))
    monkeypatch.setitem(config_module.MODELS, "other-wan", (WAN_MODEL, STREAM))


@pytest.fixture
def pair_list(make_clip: MakeClip, tmp_path: Path) -> Path:
    """Two pairs of 9 frames, 32 x 32; edited clips are brighter."""
    data = []
    for i in range(2):
        source = make_clip(f"source{i}.mp4", frames=9 + i, size=(32, 32))
        edited = make_clip(f"edited{i}.mp4", frames=9 + i, size=(32, 32), rate=25 - i)
        names = {"source_path": source.name, "edited_path": str(edited)}
        data.append({**names, "instruction": f"make it {('red', 'blue')[i]}"})
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(data))
    return path


def config_file(folder: Path, name: str, config: TrainConfig) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(to_dict(config)))
    return path


def test_every_missing_file_is_named_at_once(pair_list: Path) -> None:
    data = json.loads(pair_list.read_text())
    data[0]["source_path"], data[1]["edited_path"] = "nowhere.mp4", "gone.mp4"
    pair_list.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"names 2 files that do not") as caught:
        read_pairs(pair_list)
    assert str(pair_list.parent / "nowhere.mp4") in str(caught.value)
    assert str(pair_list.parent / "gone.mp4") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot read the list of pairs"),
        ("{}", "must be a JSON list of objects"),
        ("[]", "must be a JSON list of objects"),
        ('[{"source_path": "a", "edited_path": "b"}]', "entry 0: missing key 'instruction'"),
        (
            '[{"source_path": "a", "edited_path": "b", "instruction": " "}]',
            "entry 0: the instruction is empty",
        ),
    ],
)
def test_a_list_that_is_none_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_pairs(tmp_path / "pairs.json")


@pytest.fixture
def codec_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(PatchCodec(CODEC).state_dict(), tmp_path / "codec.pt")
    return tmp_path / "codec.pt"


def pair_cache(folder: Path, codec: Path, num_latent_frames: int = 2) -> PairCache:
    return PairCache(folder, MODEL, STREAM, num_latent_frames, codec, torch.device("cpu"))


def test_clips_that_do_not_match_are_named_by_entry(
    pair_list: Path, codec_file: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    make_clip("edited0.mp4", frames=8, size=(32, 32))
    make_clip("edited1.mp4", frames=10, size=(32, 48))
    cache = pair_cache(tmp_path / "cache", codec_file)
    with pytest.raises(UsageError, match="2 pairs have clips that do not match") as caught:
        cache.fill(read_pairs(pair_list), Processes())
    said = str(caught.value)
    assert "entry 0: " in said
    assert "source0.mp4 has 9 frames" in said
    assert "edited0.mp4 has 8 frames" in said
    assert "entry 1: " in said
    assert "edited1.mp4 has 48 x 32" in said


def test_clips_that_are_too_short_or_no_clips(
    pair_list: Path, codec_file: Path, tmp_path: Path
) -> None:
    pairs = read_pairs(pair_list)
    with pytest.raises(UsageError, match=r"entry 0: .* has 9 frames; .* clips of 12"):
        pair_cache(tmp_path / "cache", codec_file, num_latent_frames=3).fill(pairs, Processes())
    (tmp_path / "source1.mp4").write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"entry 1: .*source1.mp4"):
        pair_cache(tmp_path / "cache", codec_file).fill(pairs, Processes())


def test_clips_are_coded_once_by_content_and_codec(
    pair_list: Path, codec_file: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    pairs, folder = read_pairs(pair_list), tmp_path / "cache"
    first = pair_cache(folder, codec_file).fill(pairs, Processes())
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(times) == sorted(first)
    again = pair_cache(folder, codec_file)
    assert again.fill(pairs, Processes()) == first
    assert again._codec is None  # nothing was loaded, nothing was coded
    scene = load_scene(folder / first[0])
    assert scene.source.shape == (16, 2, 4, 4)
    assert scene.name == str(pairs[0].source)
    make_clip("edited1.mp4", frames=10, size=(32, 32), codec="mpeg4")
    changed = pair_cache(folder, codec_file).fill(pairs, Processes())
    assert (changed[0], changed[1] == first[1]) == (first[0], False)
    torch.manual_seed(1)
    torch.save(PatchCodec(CODEC).state_dict(), codec_file)
    assert not set(pair_cache(folder, codec_file).fill(pairs, Processes())) & {*first, *changed}


def test_the_command_trains_on_a_list(pair_list: Path, codec_file: Path, tmp_path: Path) -> None:
    phases = (PhaseConfig(steps=3, num_latent_frames=2, batch_size=2),)
    config = config_file(tmp_path, "config", replace(CONFIG, phases=phases))
    out = tmp_path / "run"
    words = ["train", "causal", "--config", config, "--data", pair_list, "--out", out]
    assert main([*map(str, words), "--threads", "1"]) == 2  # no codec
    assert main([*map(str, words), "--threads", "1", "--codec", str(codec_file)]) == 0
    state = torch.load(out / "latest.pt", weights_only=True)
    assert state["step"] == 3
    assert sorted(state["scenes"]) == sorted(p.name for p in (tmp_path / "pairs.cache").iterdir())


@pytest.fixture
def wan_folder(tmp_path: Path) -> Path:
    """The files of the official folder, small and random."""
    torch.manual_seed(0)
    folder = tmp_path / "wan"
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").write_bytes(byte_tokenizer())
    dit = CausalWanDiT(MODEL.dit).state_dict()
    dit["patch_embedding.weight"] = dit["patch_embedding.weight"][:, :16].contiguous()
    save_file(dit, folder / "diffusion_pytorch_model.safetensors")
    assert WAN_MODEL.wan_vae is not None
    torch.save(WanVAE(WAN_MODEL.wan_vae).state_dict(), folder / "Wan2.1_VAE.pth")
    encoder = UMT5Encoder(MODEL.text).bfloat16().state_dict()
    torch.save(encoder, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return folder


def test_three_stages_from_the_wan_base(
    pair_list: Path, wan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As liveedit-1.3b: sharded, bf16, checkpointed, text and latents from disk."""
    data = json.loads(pair_list.read_text())
    for item in data:
        item["instruction"] = item["instruction"][:7]  # the byte tokenizer spells
    pair_list.write_text(json.dumps(data))
    common = replace(
        CONFIG,
        model="mini-wan",
        phases=(PhaseConfig(steps=2, num_latent_frames=3, batch_size=2),),
        train_text=False,
        cached_text=True,
        parallel="shard",
        precision="bf16",
        gradient_checkpointing=True,
        micro_batch_size=1,
    )
    stages = {
        "foundation": common,
        "causal": common,
        "dmd": replace(common, dmd=DmdConfig(critic_steps=1, guidance=3.0)),
    }
    runs = {stage: tmp_path / stage for stage in stages}

    def train(stage: str, *words: object) -> int:
        config = config_file(tmp_path, stage, replace(stages[stage], stage=stage))
        options = ["--config", config, "--data", pair_list, "--out", runs[stage], *words]
        return main(["train", stage, *map(str, options), "--threads", "1"])

    assert train("foundation") == 2
    assert train("causal", "--wan", wan_folder) == 2  # needs --init
    assert "stage causal --init" in capsys.readouterr().err
    assert train("foundation", "--wan", wan_folder) == 0
    foundation = runs["foundation"] / "latest.pt"
    assert train("causal", "--wan", wan_folder, "--init", foundation) == 0
    causal = runs["causal"] / "latest.pt"
    assert train("dmd", "--wan", wan_folder, "--init", causal, "--teacher", foundation) == 0

    base = CausalWanDiT(MODEL.dit).state_dict()
    learnt = load_dit(foundation, MODEL.dit)
    assert learnt.keys() == base.keys()
    assert learnt["patch_embedding.weight"][:, 16:].abs().max() > 0  # the source is seen now
    student = load_dit(runs["dmd"] / "latest.pt", MODEL.dit)
    assert all(torch.isfinite(value).all() for value in student.values())
    # The wrong model's run is refused.
    stages["foundation"] = replace(common, model="other-wan")
    assert train("foundation", "--wan", wan_folder) == 1
    assert "is a run of model 'mini-wan', this is 'other-wan'" in capsys.readouterr().err


def test_cached_text_equals_the_encoder(pair_list: Path, wan_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    fill_text_cache(root, ["red", "", "red"], wan_folder, WAN_MODEL, torch.device("cpu"))
    cache = TextCache(MODEL.dit.text_len)
    cache.folder = text_folder(root)
    embeds = cache.embeds(["", "red"])
    assert embeds.shape == (2, 12, 16)
    assert embeds[0, 1:].abs().max() == 0
    assert embeds[1, 4:].abs().max() == 0
    encoder = UMT5Encoder(MODEL.text).bfloat16().eval()
    encoder.load_state_dict(torch.load(wan_folder / "models_t5_umt5-xxl-enc-bf16.pth"))
    ids = torch.zeros(1, 12, dtype=torch.int64)
    tokens = Tokenizer.from_file(str(wan_folder / "google" / "umt5-xxl" / "tokenizer.json"))
    spelt = tokens.encode("red").ids
    ids[0, : len(spelt)] = torch.tensor(spelt)
    with torch.no_grad():
        want = encoder(ids, ids != 0)
    assert torch.equal(embeds[1], want[0].float())
    with pytest.raises(UsageError, match="holds no embedding of 'green'"):
        cache.embeds(["green"])


def test_scenes_are_read_when_asked_for(tmp_path: Path) -> None:
    folder = random_scenes(tmp_path / "scenes", count=4)
    size = load_scene(folder / "0.npz").nbytes
    scenes = SceneFolder(folder, [f"{i}.npz" for i in range(4)], memory_bytes=2 * size)
    first = scenes[0]
    assert scenes[0] is first
    assert [s.name for s in scenes[1:3]] == ["1.npz", "2.npz"]
    assert scenes[0] is not first  # it made room
    assert np.array_equal(scenes[0].source, first.source)
