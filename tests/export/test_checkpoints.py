"""Official files, in every form they may have, to exactly the tensors of a configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from liveedit.config import DiTConfig, TAEHVConfig, TextEncoderConfig, WanVAEConfig
from liveedit.errors import CheckpointError
from liveedit.export import checkpoints
from liveedit.models.dit import CausalWanDiT
from liveedit.models.taehv import TAEHV
from liveedit.models.umt5 import UMT5Encoder
from liveedit.models.wan_vae import WanVAE

DIT = DiTConfig(dim=24, num_layers=2, num_heads=2, ffn_dim=40, freq_dim=16, text_dim=20, text_len=7)
TEXT = TextEncoderConfig(vocab_size=31, dim=20, dim_attn=24, ffn_dim=28, num_heads=2, num_layers=2)
VAE = WanVAEConfig(base_dim=4)
TINY_CODEC = TAEHVConfig(encoder_width=8, decoder_widths=(16, 12, 8, 8))
State = dict[str, Tensor]
Rename = Callable[[str], str]


def state_of(module: nn.Module, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in module.state_dict().items()
    }


def renamed(state: State, rename: Rename) -> State:
    return {rename(name): tensor for name, tensor in state.items()}


def fsdp_blocks(name: str) -> str:
    """Root and every block wrapped, as nested sharding names them."""
    head, *rest = name.split(".")
    if head == "blocks":
        rest.insert(1, "_fsdp_wrapped_module")
    return ".".join(["model", "_fsdp_wrapped_module", head, *rest])


NAMES: dict[str, Rename] = {
    "bare": lambda n: n,
    "model": lambda n: f"model.{n}",
    "module": lambda n: f"module.{n}",
    "module.model": lambda n: f"module.model.{n}",
    "fsdp": lambda n: f"model._fsdp_wrapped_module.{n}",
    "fsdp root": lambda n: f"_fsdp_wrapped_module.model.{n}",
    "fsdp blocks": fsdp_blocks,
    "compiled": lambda n: f"_orig_mod.{n}",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top", ["generator", "generator_ema", None])
@pytest.mark.parametrize("names", NAMES)
def test_every_form_of_the_liveedit_file(
    tmp_path: Path, names: str, top: str | None, dtype: torch.dtype
) -> None:
    want = {k: v.to(dtype) for k, v in state_of(CausalWanDiT(DIT)).items()}
    stored = renamed(want, NAMES[names])
    path = tmp_path / "ar-forcing_002000.pt"
    torch.save({top: stored, "step": 2000} if top else stored, path)
    state = checkpoints.load_dit(path, DIT)
    assert list(state) == list(want)
    assert all(torch.equal(state[k], want[k]) and state[k].dtype == dtype for k in want)


def test_chooses_the_weight_set(tmp_path: Path) -> None:
    raw, ema = (state_of(CausalWanDiT(DIT), seed) for seed in (1, 2))
    path = tmp_path / "save.pt"
    critic = {"model.x": torch.ones(3)}
    fsdp = NAMES["fsdp"]
    torch.save(
        {
            "generator": renamed(raw, NAMES["model"]),
            "generator_ema": renamed(ema, fsdp),
            "critic": critic,
        },
        path,
    )
    name = "head.head.weight"
    assert torch.equal(checkpoints.load_dit(path, DIT)[name], raw[name])
    assert torch.equal(checkpoints.load_dit(path, DIT, ema=True)[name], ema[name])
    torch.save({"generator": raw}, path)
    with pytest.raises(CheckpointError, match="no generator_ema"):
        checkpoints.load_dit(path, DIT, ema=True)
    torch.save(raw, path)
    with pytest.raises(CheckpointError, match="no generator_ema"):
        checkpoints.load_dit(path, DIT, ema=True)


def test_names_what_is_wrong(tmp_path: Path) -> None:
    state = state_of(CausalWanDiT(DIT))
    for name in ("blocks.0.ffn.0.bias", "blocks.1.norm3.bias", "head.modulation", "head.head.bias"):
        del state[name]
    state["blocks.9.ffn.0.bias"] = torch.ones(2)
    state["time_projection.1.bias"] = torch.ones(3)
    state["time_projection.1.weight"] = state["time_projection.1.weight"].to(torch.float64)
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_dit(path, DIT)
    message = str(caught.value)
    assert str(path) in message
    assert "4 missing (blocks.0.ffn.0.bias, blocks.1.norm3.bias, head.modulation, ...)" in message
    assert "1 unknown (blocks.9.ffn.0.bias)" in message
    assert "1 of another shape (time_projection.1.bias [3] instead of [144])" in message
    assert "(time_projection.1.weight torch.float64)" in message
    assert "\n" not in message


def test_refuses_two_tensors_of_one_name(tmp_path: Path) -> None:
    state = state_of(CausalWanDiT(DIT))
    state["model.head.head.bias"] = state["head.head.bias"]
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"two tensors for head\.head\.bias"):
        checkpoints.load_dit(path, DIT)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"optimizer": {"lr": 1.0}}, "'optimizer' is not a tensor"),
        ({"generator": 5}, "its weight set is a int"),
        ({}, "missing"),
    ],
)
def test_refuses_other_dictionaries(tmp_path: Path, data: dict[str, object], words: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(data, path)
    with pytest.raises(CheckpointError, match=words):
        checkpoints.load_dit(path, DIT)


def base_state() -> State:
    state = state_of(CausalWanDiT(DIT))
    state["patch_embedding.weight"] = state["patch_embedding.weight"][:, :16].contiguous()
    return state


def test_base_model_is_widened_and_ignores_the_source(tmp_path: Path) -> None:
    base = base_state()
    save_file(base, tmp_path / "diffusion_pytorch_model.safetensors")
    state = checkpoints.load_wan_base(tmp_path, DIT)
    weight = state["patch_embedding.weight"]
    assert torch.equal(weight[:, :16], base["patch_embedding.weight"])
    assert weight[:, 16:].abs().max() == 0
    assert all(torch.equal(state[k], base[k]) for k in base if k != "patch_embedding.weight")
    dit = checkpoints.load_into(CausalWanDiT, DIT, state)
    noisy, source = torch.randn(2, 1, 16, 1, 4, 6)
    with torch.no_grad():
        assert torch.equal(dit.tokens(noisy, source), dit.tokens(noisy, torch.zeros_like(source)))


def test_base_and_editing_models_are_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(base_state(), path)
    with pytest.raises(CheckpointError, match="16 input channels: it is a base Wan model"):
        checkpoints.load_dit(path, DIT)
    torch.save(state_of(CausalWanDiT(DIT)), path)
    with pytest.raises(CheckpointError, match=r"patch_embedding.weight \[24, 32, 1, 2, 2\]"):
        checkpoints.load_wan_base(path, DIT)


def test_codec_and_text_encoder_files(tmp_path: Path) -> None:
    for module, config, load in (
        (WanVAE(VAE), VAE, checkpoints.load_wan_vae),
        (UMT5Encoder(TEXT), TEXT, checkpoints.load_text_encoder),
        (TAEHV(TINY_CODEC), TINY_CODEC, checkpoints.load_taehv),
    ):
        want = state_of(module)
        torch.save(want, tmp_path / "model.pth")
        save_file(want, tmp_path / "model.safetensors")
        for name in ("model.pth", "model.safetensors"):
            state = load(tmp_path / name, config)  # type: ignore[operator]
            assert all(torch.equal(state[k], want[k]) for k in want)
        loaded = checkpoints.load_into(type(module), config, state)
        assert all(torch.equal(v, want[k]) for k, v in loaded.state_dict().items())
        assert not loaded.training
        first = next(iter(want))
        torch.save({k: v for k, v in want.items() if k != first}, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=rf"1 missing \({first}\)"):
            load(tmp_path / "model.pth", config)  # type: ignore[operator]


def test_taller_growth_keeps_its_last_rows(tmp_path: Path) -> None:
    want = state_of(TAEHV(TINY_CODEC))
    grown = [k for k in want if k.startswith("decoder.") and k.endswith(".conv.weight")]
    assert len(grown) == 3
    stored = {k: torch.cat((torch.randn_like(v), v)) if k in grown else v for k, v in want.items()}
    path = tmp_path / "taew2_1.pth"
    torch.save(stored, path)
    state = checkpoints.load_taehv(path, TINY_CODEC)
    assert all(torch.equal(state[k], want[k]) for k in want)
    stored[grown[0]] = want[grown[0]][1:]
    torch.save(stored, path)
    with pytest.raises(CheckpointError, match=f"1 of another shape \\({grown[0]}"):
        checkpoints.load_taehv(path, TINY_CODEC)


def test_load_into_takes_the_tensors_themselves() -> None:
    want = state_of(CausalWanDiT(DIT))
    dit = checkpoints.load_into(CausalWanDiT, DIT, want)
    for name, parameter in dit.named_parameters():
        assert parameter.data_ptr() == want[name].data_ptr()
    del want["head.head.bias"]
    with pytest.raises(CheckpointError, match="the given state dict does not fit"):
        checkpoints.load_into(CausalWanDiT, DIT, want)


# VmHWM, not ru_maxrss: the latter begins at the size of the process that started the child.
READ = """
import json, re, sys
from pathlib import Path
from liveedit.export.checkpoints import expected_shapes, load_dit, load_into
from liveedit.config import DiTConfig
from liveedit.models.dit import CausalWanDiT
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
config = DiTConfig(**json.loads(sys.argv[2]))
expected_shapes(CausalWanDiT, config)  # imports what torch needs for it
before = peak()
dit = load_into(CausalWanDiT, config, load_dit(Path(sys.argv[1]), config))
for parameter in dit.parameters():
    assert parameter.flatten()[::2048].isfinite().all()  # every page of 4 KiB is read
print(before, peak())
"""


def peak_of_loading(path: Path, **config: int) -> tuple[int, int, int]:
    """Bytes of the file, of the process before it was loaded, and at its peak."""
    shapes = checkpoints.expected_shapes(CausalWanDiT, DiTConfig(**config))
    state = {f"model.{k}": torch.empty(s, dtype=torch.bfloat16) for k, s in shapes.items()}
    with torch.serialization.skip_data():  # zeros that take no time and no room on the disk
        torch.save({"generator": state}, path)
    del state
    command = [sys.executable, "-c", READ, path, json.dumps(config)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak = map(int, out.split())
    return path.stat().st_size, before, peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_makes_no_second_copy(tmp_path: Path) -> None:
    size, before, peak = peak_of_loading(
        tmp_path / "model.pt", dim=512, num_layers=6, num_heads=4, ffn_dim=4096
    )
    assert size > 80e6
    assert peak - before < 1.3 * size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_the_real_size(tmp_path: Path) -> None:
    size, before, peak = peak_of_loading(tmp_path / "model.pt")
    print(f"file {size / 2**30:.2f} GiB, process {before / 2**30:.2f}, peak {peak / 2**30:.2f}")
    assert size > 2 * 1_419_095_104
    assert peak < 1.3 * size
