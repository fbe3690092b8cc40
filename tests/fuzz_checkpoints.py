"""Damaged checkpoints: bytes of small files, and tensors and wrappings of whole ones."""

import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_damage import HOSTILE, damage_bytes
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pocketsam.models.checkpoint import load_model, read_settings
from pocketsam.models.sam import seeded

SIDE = 64
torch.set_num_threads(1)


@cache
def state() -> dict[str, Tensor]:
    """Returns the tensors of a whole network, in half the bytes."""
    return {name: tensor.half() for name, tensor in seeded(SIDE, 0).state_dict().items()}


@cache
def small_files() -> dict[str, bytes]:
    """Returns files of a few tensors, by suffix."""
    few = dict(list(state().items())[:6])
    archive, old = io.BytesIO(), io.BytesIO()
    torch.save({"model": few, "epoch": 3}, archive)
    torch.save(few, old, _use_new_zipfile_serialization=False)
    metadata = {"image_size": "64"}
    return {
        ".pt": archive.getvalue(),
        ".pth": old.getvalue(),
        ".safetensors": save_safetensors(few, metadata),
    }


def _damage_tensor(random: Random, tensor: Tensor) -> Any:
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: tensor[None],
        lambda: tensor[:1],
        lambda: tensor.flatten(),
        lambda: tensor.flatten()[0],
        lambda: tensor.flatten()[:1].expand(tensor.shape),
        lambda: tensor.to(random.choice((torch.float64, torch.int32, torch.bool, torch.bfloat16))),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.float().to_sparse(),
        lambda: tensor.to("meta"),
        lambda: tensor * float("nan"),
        lambda: tensor.double() * 1e300,
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.float().numpy(),
        lambda: random.choice(HOSTILE),
    )
    return random.choice(kinds)()


def _damage_state(random: Random) -> dict[Any, Any]:
    changed: dict[Any, Any] = dict(state())
    for _ in range(random.choice((0, 1, 1, 2))):
        name, kind = random.choice(list(changed)), random.randrange(5)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[random.choice((3, None, ("a",), "", "\0", f"{name}.x"))] = changed[name]
        elif isinstance(changed[name], Tensor):
            changed[name] = _damage_tensor(random, changed[name])
    return changed


def _wrap(random: Random, changed: dict[Any, Any]) -> Any:
    prefix = random.choice(("", "", "module.", "model.", "_orig_mod.", "x."))
    if prefix:
        changed = {f"{prefix}{name}": tensor for name, tensor in changed.items()}
    content: Any = changed
    for _ in range(random.choice((0, 0, 1, 2))):
        key = random.choice(("model", "state_dict", "net", "ema", "x", 3))
        content = {key: content, "epoch": 3, "optimizer": random.choice(HOSTILE)}
    return random.choice((content, content, content, [content], (content, 1)))


def _damage_archive(random: Random, data: bytes) -> bytes:
    """Damages the bytes of an entry, such as the pickle, inside an archive that is sound."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = random.choice([name for name in old.namelist() if name.endswith((".pkl", "version"))])
        for name in old.namelist():
            entry = old.read(name)
            new.writestr(name, damage_bytes(random, entry) if name == chosen else entry)
    return out.getvalue()


def fuzz_checkpoint(random: Random, folder: Path) -> None:
    """Checkpoints, as files."""
    suffix = random.choice((".pt", ".pt", ".pth", ".safetensors"))
    path = folder / f"checkpoint{suffix}"
    if random.random() < 0.8:
        data = small_files()[suffix]
        is_inside = suffix == ".pt" and random.random() < 0.7
        path.write_bytes((_damage_archive if is_inside else damage_bytes)(random, data))
    elif suffix == ".safetensors":
        path.write_bytes(damage_bytes(random, save_safetensors(state())))
    else:
        torch.save(_wrap(random, _damage_state(random)), path)
    if random.random() < 0.3:
        read_settings(path)
    load_model(path, SIDE)
