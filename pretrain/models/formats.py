"""Every file format that holds an encoder, to the flat names that SpectralEarth publishes.

Flat names are ``spectral_adapter.*`` with ``vit_core.*`` or ``resnet.*``, and those of a plain ViT or ResNet.
Training checkpoints put them behind a prefix, beside decoders, heads and second networks, and some wrappers
store a weight several times; a training checkpoint of MAE holds each three times and more.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.models.containers import Contents, Network, read_contents
from pretrain.models.description import EncoderDescription, WeightsError

HEADS = re.compile(r"(vit_core\.head|resnet\.fc|head|fc)\.")
"""Of tasks and of the published registry's classes; an encoder here ends at its features."""

_TRUNK = re.compile(
    r"(spectral_adapter|vit_core|resnet|patch_embed|blocks|norm|conv1|bn1|layer[1-4])\.|(cls_token|pos_embed)$"
)
_PRETRAINING = re.compile(
    r"(decoder|projection_head|projection_head_momentum|student_head|teacher_head|criterion)\.|(mask_token|queue\w*)$"
)
"""What flat files may hold beside an encoder."""

_WRAPPED = (
    ("vit_core.patch_embed.spectral_adapter.", "spectral_adapter."),
    ("vit_core.patch_embed.original_patch_embed.", "vit_core.patch_embed."),
)
"""The published MAE, and newer code of its authors, puts the adapter into the patch embedding."""


@dataclass(frozen=True)
class Layout:
    """Where one kind of checkpoint keeps the encoder.

    Attributes:
        name: for the report.
        prefix: of the encoder's names.
        copies: prefixes under which the same weights stand again, and what they are in flat names.
        objective: "" where it could be any.
        network: which of the checkpoint's networks it is.
    """

    name: str
    prefix: str
    objective: str = ""
    network: str = "student"
    copies: tuple[tuple[str, str], ...] = ()


LAYOUTS = (
    Layout(
        "MAE training checkpoint",
        "encoder.vit.spec_vit.",
        "mae",
        copies=(("encoder.vit.vit_core.", "vit_core."), ("encoder.vit.", "vit_core.")),
    ),
    Layout("DINO training checkpoint, teacher", "teacher_backbone.", "dino", "teacher"),
    Layout("DINO training checkpoint, student", "student_backbone.", "dino"),
    Layout("MoCo training checkpoint", "backbone.", "moco"),
    Layout("segmentation checkpoint", "model.encoder."),
    Layout("classification or regression checkpoint", "model."),
    Layout("flat weights", ""),
)
"""The first whose prefix leads to weights of an encoder is taken."""


@dataclass(frozen=True)
class StoredEncoder:
    """An encoder as it is in a file, under flat names.

    Attributes:
        where: the file, for messages.
        layout: name of the format.
        weights: by flat name.
        left_out: names in the file that are no part of an encoder.
        copies: names in the file that repeat a weight.
        description: what the file says of it, None where it says nothing.
        objective, network: as the file's layout tells; "" where it doesn't.
    """

    where: str
    layout: str
    weights: dict[str, Tensor]
    left_out: list[str]
    copies: list[str]
    description: EncoderDescription | None
    objective: str
    network: str


def read_stored(path: Path, network: Network = "auto") -> StoredEncoder:
    """Read the encoder of a file of any format, whole or not: what is missing shows when it is compared.

    Args:
        network: which one, of a checkpoint that has two.

    Raises:
        WeightsError: missing, damaged, without an encoder or the network asked for, or with copies that differ.
    """
    contents = read_contents(path, network)
    named = contents.tensors
    if not named:
        raise WeightsError(f"{contents.where}: not a checkpoint: it holds no tensors; check the path")
    while all(name.startswith("module.") for name in named):  # saved from inside DistributedDataParallel
        named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    layout = _find_layout(contents, named, network)
    weights, left_out, copies = _to_flat_names(contents.where, named, layout)
    return StoredEncoder(
        where=contents.where,
        layout=layout.name if contents.description is None else "encoder of this project",
        weights=weights,
        left_out=left_out + contents.others,
        copies=copies,
        description=contents.description,
        objective="" if contents.network else layout.objective,  # a teacher in a container is anybody's
        network=contents.network or layout.network,
    )


def _find_layout(contents: Contents, named: dict[str, Tensor], network: Network) -> Layout:
    present = [layout for layout in LAYOUTS if any(_is_trunk(name, layout.prefix) for name in named)]
    if not present:
        first = next(iter(named))
        raise WeightsError(
            f"{contents.where}: no encoder in it: none of its {len(named)} tensors (e.g. {first}) has a known name"
        )
    if contents.network is not None:
        if network not in ("auto", contents.network):
            raise WeightsError(f"{contents.where}: holds the {contents.network}, not a {network}; name another file")
        return present[0]
    asked = [layout for layout in present if network in ("auto", layout.network)]
    if not asked:
        raise WeightsError(f"{contents.where}: no {network} in it; leave the choice of the network out")
    return asked[0]


def _is_trunk(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and _TRUNK.match(name[len(prefix) :]) is not None


def _to_flat_names(
    where: str, named: dict[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Weights by flat name, names that are no part of the encoder, and names that repeat a weight."""
    weights: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    copies: list[str] = []
    rest = list(named)
    for prefix, flat_prefix in ((layout.prefix, ""), *layout.copies):
        inside = [name for name in rest if name.startswith(prefix)]
        rest = [name for name in rest if not name.startswith(prefix)]
        for name in inside:
            flat = _unwrapped(flat_prefix + name[len(prefix) :])
            if HEADS.match(flat) or (not layout.prefix and _PRETRAINING.match(flat)):
                continue
            if flat not in weights:
                weights[flat], origin[flat] = named[name], name
            elif _equal(weights[flat], named[name]):
                copies.append(name)
            else:
                raise WeightsError(
                    f"{where}: {origin[flat]} and {name} should be one weight and differ; save the checkpoint again"
                )
    used = {*origin.values(), *copies}
    return weights, [name for name in named if name not in used], copies


def _unwrapped(name: str) -> str:
    for wrapped, flat in _WRAPPED:
        if name.startswith(wrapped):
            return flat + name[len(wrapped) :]
    return name


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
