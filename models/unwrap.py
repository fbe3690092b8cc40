"""Opens torch's files without running anything, and finds SAM's weights in them; the rules are tables.

People save a network inside a training state, behind a prefix, beside its optimizer. Names are
flattened to ``a.b.c``, and what stands before ``image_encoder.``, ``prompt_encoder.`` and
``mask_decoder.`` is the wrapping, whoever put it there.
"""

import io
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pocketsam.constants import PIXEL_MEAN, PIXEL_STD
from pocketsam.errors import CheckpointError

ROOTS = ("image_encoder", "prompt_encoder", "mask_decoder")

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
TRANSFORMERS = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
    (r"^(prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding$", GAUSSIAN),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"((iou_prediction_head|output_hypernetworks_mlps\.\d)\.)layers\.0\.", r"\1layers.1."),
    (r"((iou_prediction_head|output_hypernetworks_mlps\.\d)\.)proj_in\.", r"\1layers.0."),
    (r"((iou_prediction_head|output_hypernetworks_mlps\.\d)\.)proj_out\.", r"\1layers.2."),
    (r"\.layer_norm", ".norm"),
)
"""(pattern, name): what ``SamModel`` of transformers calls otherwise, changed in this order."""

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Segments of a name that torch's wrappers of modules add: compile, DDP, FSDP, recomputation."""

FORMS = (
    ("Lightning checkpoint", re.compile(r"pytorch-lightning_version")),
    ("checkpoint of micro-sam", re.compile(r"model_state\.sam\.")),
    ("training checkpoint", re.compile(r"(optim|epoch|iter|step)")),
)
"""What a wrapped file is called, by a name that it holds; the first that fits."""

AVERAGES = {"ema", "averaged", "swa"}
"""Words in the prefix of averaged weights, which are taken before the others."""

USUAL = ("", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Prefixes in the order in which they are taken where a file holds several networks."""

OPTIMIZERS = re.compile(r"(^|\.)(optim|exp_avg|grad)")
"""Names of an optimizer's tensors, which may end in a weight's name."""

FOREIGN = (
    (
        r"(^|\.)mask_decoder\.(hf_token|hq_token|hf_mlp|compress_vit_feat)\.",
        "HQ-SAM, whose decoder also reads features from inside the encoder, which bundles do not hold; "
        "export the network that it was made from, such as mobile_sam",
    ),
    (
        r"(^|[._])lora_|(^|\.)w_[ab](\.|_\d|_linear)|linear_[ab]_[qkv]\.",
        "LoRA matrices beside the weights; merge them into the weights and save again",
    ),
    (r"(?i)(^|[._])adapters?([._]|$)", "adapters, layers that SAM does not have"),
    (r"(^|\.)(sam_mask_decoder|memory_attention|memory_encoder)\.", "SAM 2, another network"),
    (r"(^|\.)mask_decoder\.final_output_upscaling_layers\.", "EfficientSAM, another network"),
    (r"(^|\.)image_encoder\.backbone\.", "EfficientViT-SAM, another network"),
)
"""(pattern of a name, what the file is): networks that are not supported, refused by name."""

LUGGAGE_TYPES = (
    *("argparse", "pathlib", "datetime", "numpy", "omegaconf", "ml_collections", "lightning"),
    *("lightning_fabric", "pytorch_lightning", "torchmetrics"),
)
"""Packages whose objects people save beside weights; an empty object takes the place of each."""
_PLAIN = ("dict", "list", "set", "frozenset", "tuple", "int", "float", "str", "slice", "range")
PLAIN_TYPES = {f"builtins.{name}" for name in _PLAIN}
CONTAINERS: dict[str, Any] = {
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
}
_DEPTH = 8


@dataclass(frozen=True)
class Unwrapped:
    """The weights of a file.

    Attributes:
        state: tensors by official name; and whatever else stands at their level inside the network.
        extra: names of other tensors beside the network, none of an optimizer's.
        note: what was done to find them, in one line; "" where nothing was.
    """

    state: dict[str, Tensor]
    extra: tuple[str, ...]
    note: str


def unwrap(name: str, content: object) -> Unwrapped:
    """Returns the network's tensors under their official names.

    Args:
        name: of the file, for errors.
        content: what the file holds: dictionaries, however nested.

    Raises:
        CheckpointError: it holds no network, several, a network that is not supported, or a tensor
            under something other than a name.
    """
    tensors = dict(_flatten(name, content))
    networks: dict[str, dict[str, Tensor]] = {}
    others = {key: value for key, value in tensors.items() if not OPTIMIZERS.search(key)}
    for pattern, what in FOREIGN:
        if any(re.search(pattern, key) for key in others):
            raise CheckpointError(f"{name}: holds {what}")
    for key, tensor in others.items():
        prefix, inner = _split(key)
        if inner:
            networks.setdefault(prefix, {})[inner] = tensor
    if not networks:
        raise CheckpointError(f"{name}: {_describe_stranger(tensors, content)}")
    for prefix, found in networks.items():
        if any(key.startswith("vision_encoder.") for key in found):
            networks[prefix] = {_rename(key): tensor for key, tensor in found.items()}
    prefix = _choose(name, networks)
    chosen = networks[prefix]
    extra = tuple(key for key in others if _split(key)[0] != prefix or not _split(key)[1])
    return Unwrapped(chosen, extra, _describe(prefix, content, tensors, extra))


def _flatten(name: str, content: object) -> Iterator[tuple[str, Tensor]]:
    """Gives (``a.b.c``, tensor) for each tensor in nested dictionaries and lists."""
    seen: set[int] = set()  # a pickle can hold a dictionary in itself, or one a million times

    def walk(value: object, path: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            if value.is_nested:  # it has no shape
                raise CheckpointError(f"{name}: {path} is a nested tensor; save its dense values")
            yield path, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen and depth < _DEPTH:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in items:
                is_name = isinstance(key, str) or not isinstance(value, Mapping)
                if isinstance(item, Tensor) and not is_name and not OPTIMIZERS.search(path):
                    raise CheckpointError(f"{name}: a tensor has the key {key!r:.40}, which is no name")
                segment = f"{key!s:.200}"
                segment = segment if segment.isprintable() else ascii(segment)  # it stands in errors
                yield from walk(item, f"{path}.{segment}" if path else segment, depth + 1)

    yield from walk(content, "", 0)


def _split(key: str) -> tuple[str, str]:
    """Returns (prefix, official name), or (key, "") for a tensor outside SAM's three parts."""
    segments = key.split(".")
    for number, segment in enumerate(segments):
        if segment in (*ROOTS, "vision_encoder", "shared_image_embedding"):
            inner = [segment for segment in segments[number:] if segment not in WRAPPERS]
            return ".".join(segments[:number]), ".".join(inner)
    return key, ""


def _rename(key: str) -> str:
    """Returns segment-anything's name for one of transformers'."""
    for pattern, name in TRANSFORMERS:
        key = re.sub(pattern, name, key)
    return key


def _choose(name: str, networks: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Returns the prefix of the network to take."""
    whole = [p for p, found in networks.items() if {k.split(".")[0] for k in found} == set(ROOTS)]
    if len(whole) < 2:
        return whole[0] if whole else max(networks, key=lambda prefix: len(networks[prefix]))
    averaged = [p for p in whole if AVERAGES & set(re.split(r"[._]", p.lower()))]
    if len(averaged) == 1:
        return averaged[0]
    for usual in USUAL:
        if usual in whole:
            return usual
    listed = " and ".join(f"{prefix}." for prefix in sorted(whole)[:4])
    raise CheckpointError(
        f"{name}: holds {len(whole)} networks, under {listed}; save one of them alone"
    )


def _describe(
    prefix: str, content: object, tensors: Mapping[str, Tensor], extra: tuple[str, ...]
) -> str:
    """Returns one line about what was removed and ignored."""
    parts = []
    if any("vision_encoder." in key for key in tensors):
        parts.append("SAM of transformers: names changed to segment-anything's")
    if prefix:
        names = [str(key) for key in content] if isinstance(content, Mapping) else []
        heads = "\n".join([f"{prefix}.", *names])
        form = next((form for form, pattern in FORMS if pattern.search(heads)), "wrapped checkpoint")
        if AVERAGES & set(re.split(r"[._]", prefix.lower())):
            form += " with averaged weights"
        parts.append(f"{form}: prefix {prefix}. removed")
    inside = {word for key in tensors for word in key.split(".") if word in WRAPPERS}
    parts += [f"{word}. removed from names" for word in sorted(inside - set(prefix.split(".")))]
    optimizers = sum(bool(OPTIMIZERS.search(key)) for key in tensors)
    if optimizers:
        parts.append(f"{optimizers} optimizer entries ignored")
    if extra:
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        parts.append(f"{', '.join(extra[:3])}{more} ignored")
    for statistic, usual in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        own = [tensors[key].flatten().tolist() for key in extra if key.endswith(statistic)]
        if any(
            len(v) != 3 or max(abs(a - b) for a, b in zip(v, usual, strict=True)) > 0.5 for v in own
        ):
            parts.append(f"its {statistic} is not SAM's, which a bundle normalises with")
    return "; ".join(parts)


def _describe_stranger(tensors: Mapping[str, Tensor], content: object) -> str:
    """Returns what a file without SAM's three parts seems to be."""
    if any(re.search(r"(^|\.)(patch_embed|neck)\.", key) for key in tensors):
        return (
            "holds an image encoder alone (patch_embed, neck); a checkpoint has prompt_encoder and "
            "mask_decoder as well, and names with the part in front: image_encoder.neck.0.weight"
        )
    if not tensors:
        return f"holds no tensors by name, but {type(content).__name__}; save model.state_dict()"
    listed = ", ".join(sorted(tensors)[:3])
    return (
        f"holds {len(tensors)} tensors ({listed:.150}), none of SAM's: their names start with "
        "image_encoder., prompt_encoder. or mask_decoder."
    )


def read_torch(name: str, source: str | io.BytesIO) -> Any:
    """Returns what a file of ``torch.save`` holds, on the CPU; nothing in it runs.

    Args:
        name: of the file, for errors.
        source: the bytes of one; or the path of an archive, of which only what is looked at is read.

    Raises:
        CheckpointError: it is damaged, or holds objects that are neither tensors nor luggage.
    """
    stand_ins, unknown = _stand_ins(source)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # torch warns of old pickles, then refuses them
            mmap = isinstance(source, str)
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged pickle"
        if "Weights only load failed" in reason:
            reason = f"it holds {unknown or 'more than tensors'}, and loading it could run code"
        raise CheckpointError(
            f"{name}: refused: {reason:.200}; save model.state_dict() alone"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: not a torch checkpoint, or truncated: {reason:.200}") from None


def _stand_ins(source: str | io.BytesIO) -> tuple[list[Any], str]:
    """Returns (object, name) for each type in an archive that is only luggage, and names of others."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(source))
    except Exception:  # another format, or damaged: torch.load says so
        names = set()
    if isinstance(source, io.BytesIO):
        source.seek(0)
    empty = {n for n in names if n.split(".")[0] in LUGGAGE_TYPES or n in PLAIN_TYPES}
    known = {name: CONTAINERS.get(name, _Luggage) for name in names & CONTAINERS.keys() | empty}
    unknown = ", ".join(sorted(ascii(name)[1:-1] for name in names - known.keys())[:3])
    return [(value, name) for name, value in known.items()], unknown


class _Luggage:
    """Takes whatever a pickle gives to an object, and stays empty."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Luggage":
        return super().__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass
