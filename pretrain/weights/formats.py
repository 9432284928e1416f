"""Every file format that holds an encoder, to the flat names that SpectralEarth publishes.

Flat names are ``spectral_adapter.*`` with ``vit_core.*`` or ``resnet.*``, and those of a plain ViT or ResNet.
Training checkpoints put them behind a prefix, beside decoders, heads and second networks, and some wrappers
store a weight several times; a training checkpoint of MAE holds each three times and more.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pretrain.weights.containers import Contents, read_contents
from pretrain.weights.description import EXTRA_STATE, EncoderDescription, WeightsError, from_extra_state
from pretrain.weights.torch_files import Network

HEADS = re.compile(r"(vit_core\.head|resnet\.fc|head|fc)\.")
"""Of tasks and of the published registry's classes; an encoder here ends at its features."""

_NORM = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
_TRUNK = re.compile(
    r"(?:^|(?<=\.))(?:"
    rf"(?:(?:vit_core\.)?patch_embed\.)?spectral_adapter\.\d\.{_NORM}"
    r"|(?:vit_core\.)?(?:cls_token|pos_embed|norm\.(?:weight|bias))"
    r"|(?:vit_core\.)?patch_embed\.(?:original_patch_embed\.)?proj\.(?:weight|bias)"
    r"|(?:vit_core\.)?blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias)"
    rf"|(?:resnet\.)?(?:conv1\.weight|bn1\.{_NORM})"
    rf"|(?:resnet\.)?layer[1-4]\.\d+\.(?:conv[123]\.weight|(?:bn[123]|downsample\.[01])\.{_NORM})"
    r")$"
)
"""Flat names of an encoder's weights at the end of a longer name."""

_STEM = re.compile(r"(?:vit_core\.)?(?:patch_embed\.)?spectral_adapter\.|patch_embed\.|conv1\.")
_BODY = re.compile(r"(?:vit_core\.)?blocks\.|(?:resnet\.)?layer[1-4]\.")
_PRETRAINING = re.compile(
    r"(decoder|projection_head|projection_head_momentum|student_head|teacher_head|criterion)\."
    rf"|(mask_token|queue\w*|n_averaged|{EXTRA_STATE})$"
)
"""What flat files may hold beside an encoder."""

_SHELLS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module")
)
"""What DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning put into names."""

_AVERAGE = re.compile(r"momentum|(?:^|[._])ema(?:[._]|$)")
"""Averages over training, and momentum networks, beside the network that is trained."""

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
        beside: prefix that is there, too; "" where none need be.
    """

    name: str
    prefix: str
    objective: str = ""
    network: str = "student"
    copies: tuple[tuple[str, str], ...] = ()
    beside: str = ""


LAYOUTS = (
    Layout(
        "MAE training checkpoint",
        "encoder.vit.spec_vit.",
        "mae",
        copies=(("encoder.vit.vit_core.", "vit_core."), ("encoder.vit.", "vit_core.")),
    ),
    Layout("DINO training checkpoint, teacher", "teacher_backbone.", "dino", "teacher"),
    Layout("DINO training checkpoint, student", "student_backbone.", "dino"),
    Layout("MoCo training checkpoint", "backbone.", "moco", beside="backbone_momentum."),
)
"""Of the published code; each may stand below further prefixes. Anything else is found by the names of its weights."""


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
        heads: see ``Contents``.
    """

    where: str
    layout: str
    weights: dict[str, Tensor]
    left_out: list[str]
    copies: list[str]
    description: EncoderDescription | None
    objective: str
    network: str
    heads: dict[str, Tensor]


def read_stored(path: Path, network: Network = "auto") -> StoredEncoder:
    """Read the encoder of a file of any format, whole or not: what is missing shows when it is compared.

    Args:
        network: which one, of a checkpoint that has two.

    Raises:
        WeightsError: missing, damaged, without an encoder or the network asked for, or with copies that differ.
    """
    contents = read_contents(path, network)
    if not contents.tensors:
        raise WeightsError(f"{contents.where}: not a checkpoint: it holds no tensors; check the path")
    named, shells = _without_shells(contents)
    layout = _find_layout(contents, named, network)
    weights, left_out, copies = _to_flat_names(contents.where, named, layout)
    described = contents.description or _described_beside(named, layout)
    if described is not None and network not in ("auto", described.network):
        raise WeightsError(f"{contents.where}: holds the {described.network}, not a {network}; name another file")
    return StoredEncoder(
        where=contents.where,
        layout=layout.name if described is None else "encoder of this project",
        weights=weights,
        left_out=[name for name in left_out if not name.endswith(EXTRA_STATE)] + contents.others,
        copies=copies + shells,
        description=described,
        objective="" if contents.network else layout.objective,  # a teacher in a container is anybody's
        network=contents.network or layout.network,
        heads=contents.heads,
    )


def bare_name(name: str) -> str:
    """A weight's name without what DistributedDataParallel, torch.compile and their like have put into it."""
    return ".".join(part for part in name.split(".") if part not in _SHELLS) or name


def _without_shells(contents: Contents) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the names that they have without what wraps modules, and names that repeat one."""
    named: dict[str, Tensor] = {}
    copies = []
    for name, tensor in contents.tensors.items():
        bare = bare_name(name)
        if bare not in named:
            named[bare] = tensor
        elif _equal(named[bare], tensor):
            copies.append(name)
        else:
            raise WeightsError(
                f"{contents.where}: {name} and {bare} should be one weight and differ; save one of the networks alone"
            )
    return named, copies


def _find_layout(contents: Contents, named: dict[str, Tensor], network: Network) -> Layout:
    """Where the encoder is: in a checkpoint of the published code, or below any prefix, which the names tell."""
    where, roots = contents.where, _find_roots(named)
    if not roots:
        first = next(iter(named))
        raise WeightsError(
            f"{where}: no encoder in it: none of its {len(named)} tensors (e.g. {first}) has a known name"
        )
    known = [found for layout in LAYOUTS for root in roots if (found := _below(root, layout, named)) is not None]
    asked = [layout for layout in known if network in ("auto", layout.network) or contents.network is not None]
    if known and not asked:
        raise WeightsError(f"{where}: no {network} in it; leave the choice of the network out")
    return asked[0] if asked else _choose(where, named, roots, "auto" if contents.network else network)


def _find_roots(named: dict[str, Tensor]) -> dict[str, list[str]]:
    """Prefixes with an encoder below, and its flat names there; where none is whole, of what is most like one."""
    roots: dict[str, list[str]] = defaultdict(list)
    for name in named:
        found = _TRUNK.search(name)
        if found:
            roots[name[: found.start()]].append(found[0])

    def has(root: str, part: re.Pattern[str]) -> bool:
        return any(part.match(name) for name in roots[root])

    bodies = {root: names for root, names in roots.items() if has(root, _BODY)}
    whole = {root: names for root, names in bodies.items() if has(root, _STEM)}
    return whole or bodies or dict(roots)


def _below(root: str, layout: Layout, named: dict[str, Tensor]) -> Layout | None:
    """The layout below the prefix that a root shows; None where this is another layout."""
    outer = root.removesuffix(layout.prefix)
    if outer == root or (outer and not outer.endswith(".")):
        return None
    if not any(name.startswith(outer + layout.beside) for name in named):
        return None
    return replace(layout, prefix=root, copies=tuple((outer + prefix, flat) for prefix, flat in layout.copies))


def _choose(where: str, named: dict[str, Tensor], roots: dict[str, list[str]], network: Network) -> Layout:
    """The encoder of a file that is no checkpoint of the published code: below any prefix, or several.

    Raises:
        WeightsError: it has no such network, or several encoders.
    """
    teachers = [root for root in roots if "teacher" in root]
    averages = [root for root in roots if _AVERAGE.search(root)]
    others = [root for root in roots if root not in teachers and root not in averages]
    found = {"auto": teachers or others or averages, "teacher": teachers or averages, "student": others}[network]
    if not found:
        raise WeightsError(f"{where}: no {network} in it; leave the choice of the network out")
    first, *more = found
    for root in more:
        if not all(_equal(named[first + name], named.get(root + name)) for name in roots[first]):
            held = " and ".join(f"'{one.rstrip('.')}'" for one in (first, root))
            raise WeightsError(
                f"{where}: holds several encoders, {held}: save the one that is meant, "
                "torch.save(model.NAME.state_dict(), FILE)"
            )
    name = f"weights below '{first.rstrip('.')}'" if first else "flat weights"
    kind = "teacher" if first in teachers or (first in averages and network == "teacher") else "student"
    return Layout(name, first, network=kind, copies=tuple((root, "") for root in more))


def _described_beside(named: dict[str, Tensor], layout: Layout) -> EncoderDescription | None:
    """The description that a `PretrainedEncoder` adds to its state: its encoder is at ``encoder.`` beside it."""
    outer = layout.prefix.removesuffix("encoder.")
    state = named.get(outer + EXTRA_STATE)
    return None if state is None else from_extra_state(state)


def _to_flat_names(
    where: str, named: dict[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Weights by flat name, names that are no part of the encoder, and names that repeat a weight."""
    weights: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    copies: list[str] = []
    places = ((layout.prefix, ""), *layout.copies)
    deepest = sorted((prefix for prefix, _ in places), key=len, reverse=True)
    below = {name: next((one for one in deepest if name.startswith(one)), None) for name in named}
    for prefix, flat_prefix in places:
        for name in (name for name in named if below[name] == prefix):
            flat = _unwrapped(flat_prefix + name[len(prefix) :])
            if HEADS.match(flat) or _PRETRAINING.match(flat):
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


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    # copies of NaN are copies, too: that weights are finite is looked at elsewhere
    return torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, 0, 0, equal_nan=True))
