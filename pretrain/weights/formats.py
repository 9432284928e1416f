"""Find an encoder in a file of any format, under the flat names that SpectralEarth publishes.

Flat names are ``spectral_adapter.*`` with ``vit_core.*`` or ``resnet.*``, and those of a plain ViT or ResNet.
Training checkpoints put a prefix before them, and hold decoders, heads and second networks as well. Some wrappers
store a weight several times; a training checkpoint of MAE holds each at least three times.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.weights.description import EXTRA_STATE, EncoderDescription, WeightsError, from_extra_state
from pretrain.weights.encoder_weights import EncoderWeights, outline, require_finite
from pretrain.weights.raw_checkpoint import RawCheckpoint
from pretrain.weights.recognize import recognize
from pretrain.weights.report import compare
from pretrain.weights.torch_files import Network

HEADS = re.compile(r"(vit_core\.head|resnet\.fc|head|fc)\.")
"""Heads of tasks and of the published registry's classes; an encoder ends at its features."""

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
"""Other entries of pretraining that flat files may hold."""

_WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module")
)
"""Parts of names from DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning."""

_AVERAGE = re.compile(r"momentum|(?:^|[._])ema(?:[._]|$)")
"""Names of moving averages and momentum networks."""

_WRAPPED = (
    ("vit_core.patch_embed.spectral_adapter.", "spectral_adapter."),
    ("vit_core.patch_embed.original_patch_embed.", "vit_core.patch_embed."),
)
"""The published MAE, and newer code of its authors, put the adapter into the patch embedding."""


@dataclass(frozen=True)
class NamingScheme:
    """Where one kind of checkpoint keeps the encoder.

    Attributes:
        name: for the report.
        prefix: prefix of the encoder's names.
        copies: prefixes of further copies of the weights, and the flat prefix that each stands for.
        objective: the objective of the training; "" where it could be any.
        network: which network of the checkpoint this is.
        beside: another prefix that must occur in the file; "" for none.
    """

    name: str
    prefix: str
    objective: str = ""
    network: str = "student"
    copies: tuple[tuple[str, str], ...] = ()
    beside: str = ""


SCHEMES = (
    NamingScheme(
        "MAE training checkpoint",
        "encoder.vit.spec_vit.",
        "mae",
        copies=(("encoder.vit.vit_core.", "vit_core."), ("encoder.vit.", "vit_core.")),
    ),
    NamingScheme("DINO training checkpoint, teacher", "teacher_backbone.", "dino", "teacher"),
    NamingScheme("DINO training checkpoint, student", "student_backbone.", "dino"),
    NamingScheme("MoCo training checkpoint", "backbone.", "moco", beside="backbone_momentum."),
)
"""Schemes of the published code, possibly below further prefixes; others are found by the names of their weights."""


OURS = "encoder of this project"
"""The format of files that describe themselves."""


def find_encoder(raw: RawCheckpoint, network: Network = "auto", architecture: str | None = None) -> EncoderWeights:
    """Find the encoder among the tensors of a file of any format.

    Args:
        network: which one to take of a file that holds two.
        architecture: what to compare the weights with; None for what the file says or the weights look like.

    Raises:
        WeightsError: no encoder or not the network asked for, copies of a weight that differ, or weights that are
            missing, unexpected, of another shape or not finite.
    """
    if not raw.tensors:
        raise WeightsError(f"{raw.where}: not a checkpoint: it holds no tensors; check the path")
    named, wrapped = _without_wrappers(raw)
    description = raw.description
    if description is not None:  # its names are known, and need no search
        scheme = NamingScheme(OURS, raw.prefix)
    else:
        scheme = _find_scheme(raw, named, network)
        description = _described_beside(named, scheme.prefix)
    flat = _to_flat_names(raw.where, named, scheme, keep_all=description is not None)
    if description is not None and network not in ("auto", description.network):
        raise WeightsError(f"{raw.where}: contains the {description.network}, not a {network}; name another file")
    is_described = description is not None
    if description is None:
        objective = "" if raw.network else scheme.objective  # a teacher in a container is anybody's
        description = recognize(flat.weights, objective, raw.network or scheme.network, raw.where)
    if architecture is not None:
        description = replace(description, architecture=architecture)
    expected = outline(description, raw.where).state_dict()
    left_out = [name for name in flat.left_out if not name.endswith(EXTRA_STATE)] + raw.others
    report = compare(expected, flat.weights, flat.copies + wrapped, left_out)
    report.require_all(raw.where, description.architecture)
    weights = {name: flat.weights[name] for name in expected}
    require_finite(weights, raw.where)
    name = OURS if is_described else scheme.name
    return EncoderWeights(raw.where, name, weights, description, report, is_described, raw.heads)


def bare_name(name: str) -> str:
    """Return the name of a weight without the parts that wrappers such as DistributedDataParallel have added."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS) or name


def _without_wrappers(raw: RawCheckpoint) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under their names without wrappers, and the names of repeated ones."""
    named: dict[str, Tensor] = {}
    copies = []
    for name, tensor in raw.tensors.items():
        bare = bare_name(name)
        if bare not in named:
            named[bare] = tensor
        elif _equal(named[bare], tensor):
            copies.append(name)
        else:
            raise WeightsError(
                f"{raw.where}: {name} and {bare} should be the same weight but differ; save only one of the networks"
            )
    return named, copies


def _find_scheme(raw: RawCheckpoint, named: dict[str, Tensor], network: Network) -> NamingScheme:
    """Where the encoder is: by a scheme of the published code, or below any prefix that the names show."""
    where, roots = raw.where, _find_roots(named)
    if not roots:
        first = next(iter(named))
        raise WeightsError(
            f"{where}: no encoder in it: none of its {len(named)} tensors (e.g. {first}) has a known name"
        )
    known = [
        completed for scheme in SCHEMES for root in roots if (completed := _below(root, scheme, named)) is not None
    ]
    matching = [scheme for scheme in known if network in ("auto", scheme.network) or raw.network is not None]
    if known and not matching:
        raise WeightsError(f"{where}: no {network} in it; don't choose a network")
    return matching[0] if matching else _choose(where, named, roots, "auto" if raw.network else network)


def _find_roots(named: dict[str, Tensor]) -> dict[str, list[str]]:
    """Prefixes with an encoder below, and its flat names there; where none is complete, those of the most similar.

    An encoder is known by its names, or by the description that a `PretrainedEncoder` puts beside it.
    """
    roots: dict[str, list[str]] = defaultdict(list)
    for name in named:
        match = _TRUNK.search(name)
        if match:
            roots[name[: match.start()]].append(match[0])

    def has(root: str, part: re.Pattern[str]) -> bool:
        return any(part.match(name) for name in roots[root])

    bodies = {root: names for root, names in roots.items() if has(root, _BODY)}
    complete = {root: names for root, names in bodies.items() if has(root, _STEM)}
    for name in named:
        root = f"{name.removesuffix(EXTRA_STATE)}encoder."
        if name.endswith(EXTRA_STATE) and root not in complete and _described_beside(named, root) is not None:
            complete[root] = [each.removeprefix(root) for each in named if each.startswith(root)]
    return complete or bodies or dict(roots)


def _below(root: str, scheme: NamingScheme, named: dict[str, Tensor]) -> NamingScheme | None:
    """The scheme at a root, with its prefixes completed; None if the root has another scheme."""
    outer = root.removesuffix(scheme.prefix)
    if outer == root or (outer and not outer.endswith(".")):
        return None
    if not any(name.startswith(outer + scheme.beside) for name in named):
        return None
    return replace(scheme, prefix=root, copies=tuple((outer + prefix, flat) for prefix, flat in scheme.copies))


def _choose(where: str, named: dict[str, Tensor], roots: dict[str, list[str]], network: Network) -> NamingScheme:
    """Return the encoder in a file of other code: below any prefix, or below several.

    Raises:
        WeightsError: the file lacks the network, or holds several encoders.
    """
    teachers = [root for root in roots if "teacher" in root]
    averages = [root for root in roots if _AVERAGE.search(root)]
    students = [root for root in roots if root not in teachers and root not in averages]
    candidates = {"auto": teachers or students or averages, "teacher": teachers or averages, "student": students}[
        network
    ]
    if not candidates:
        raise WeightsError(f"{where}: no {network} in it; don't choose a network")
    first, *more = candidates
    for root in more:
        if not all(_equal(named[first + name], named.get(root + name)) for name in roots[first]):
            held = " and ".join(f"'{prefix.rstrip('.')}'" for prefix in (first, root))
            raise WeightsError(
                f"{where}: contains several encoders, {held}: save the one you mean, "
                "torch.save(model.NAME.state_dict(), FILE)"
            )
    name = f"weights below '{first.rstrip('.')}'" if first else "flat weights"
    kind = "teacher" if first in teachers or (first in averages and network == "teacher") else "student"
    return NamingScheme(name, first, network=kind, copies=tuple((root, "") for root in more))


def _described_beside(named: dict[str, Tensor], prefix: str) -> EncoderDescription | None:
    """The description that a `PretrainedEncoder` adds to its state: its encoder is at ``encoder.`` beside it."""
    state = named.get(prefix.removesuffix("encoder.") + EXTRA_STATE)
    return None if state is None else from_extra_state(state)


class FlatWeights(NamedTuple):
    """Weights by flat name, and names in the file that are not part of the encoder or repeat a weight."""

    weights: dict[str, Tensor]
    left_out: list[str]
    copies: list[str]


def _to_flat_names(where: str, named: dict[str, Tensor], scheme: NamingScheme, keep_all: bool) -> FlatWeights:
    """The weights of a scheme without its prefixes and second copies, and, unless ``keep_all``, without heads."""
    weights: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    copies: list[str] = []
    prefixes = ((scheme.prefix, ""), *scheme.copies)
    deepest = sorted((prefix for prefix, _ in prefixes), key=len, reverse=True)
    below = {name: next((prefix for prefix in deepest if name.startswith(prefix)), None) for name in named}
    for prefix, flat_prefix in prefixes:
        for name in (name for name in named if below[name] == prefix):
            flat = _unwrapped(flat_prefix + name[len(prefix) :])
            if not keep_all and (HEADS.match(flat) or _PRETRAINING.match(flat)):
                continue
            if flat not in weights:
                weights[flat], origin[flat] = named[name], name
            elif _equal(weights[flat], named[name]):
                copies.append(name)
            else:
                raise WeightsError(
                    f"{where}: {origin[flat]} and {name} should be the same weight but differ; save the checkpoint "
                    "again"
                )
    used = {*origin.values(), *copies}
    return FlatWeights(weights, [name for name in named if name not in used], copies)


def _unwrapped(name: str) -> str:
    for wrapped, flat in _WRAPPED:
        if name.startswith(wrapped):
            return flat + name[len(wrapped) :]
    return name


def _equal(first: Tensor, second: Tensor | None) -> bool:
    if second is None or first.dtype != second.dtype or first.shape != second.shape:
        return False
    # NaN equals NaN here; whether weights are finite is checked elsewhere
    return torch.equal(first, second) or (
        first.is_floating_point() and torch.allclose(first, second, 0, 0, equal_nan=True)
    )
