"""MoCo-v2 on hyperspectral tiles: two dates of a location are two views of it (arXiv 2003.04297, 2408.08447).

The query encoder is trained to distinguish the key of its own location from a queue of keys of others. Keys come from
a momentum copy of encoder and head. All keys of an optimizer step enter the queue at its end, in sample order,
so neither ranks nor accumulation change a loss. Keys of a sample's own location are not negatives for it: in a small
archive they would be most of the queue. The queue starts with random vectors, which are easy to distinguish: the
loss rises until it is full of real keys.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.config.objective import MocoConfig
from pretrain.data.draws import Draws
from pretrain.data.stream import TileBatch
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups
from pretrain.models.encoder import Encoder
from pretrain.models.flops import Parts, add
from pretrain.models.normalize import Normalizer
from pretrain.models.spectrum import Spectrum, shuffled
from pretrain.objectives.objective import (
    Evaluation,
    Objective,
    ObjectiveModule,
    build_module_encoder,
    feature_spread,
    recomputes_blocks,
)
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest
from shards.order.random_bits import fold_in, permute


class ProjectionHead(nn.Module):
    """Two linear layers with a ReLU between; with ``norm``, a batch norm after each, as in the published code.

    Args:
        inputs, hidden, outputs: widths.
        bn_group: samples that share batch-norm statistics.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: bool, bn_group: int | None) -> None:
        super().__init__()
        self.bn_group = bn_group
        steps: list[nn.Module] = [nn.Linear(inputs, hidden, bias=not norm), nn.ReLU(), nn.Linear(hidden, outputs)]
        if norm:
            steps[2] = nn.Linear(hidden, outputs, bias=False)
            steps.insert(1, GroupedBatchNorm(hidden))
            steps.append(GroupedBatchNorm(outputs))
        self.layers = nn.Sequential(*steps)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs)."""
        return by_groups(
            self.layers,
            features.to(cast(nn.Linear, self.layers[0]).weight.dtype),
            self.bn_group if self.training else None,
        )

    def flops(self) -> int:
        """Operations of a forward on one image."""
        return 2 * sum(layer.weight.numel() for layer in self.layers if isinstance(layer, nn.Linear))


class ProjectedEncoder(nn.Module):
    """Encoder and projection head, of which MoCo keeps a momentum copy."""

    def __init__(self, encoder: Encoder, projection_head: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.projection_head = encoder, projection_head

    def forward(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        """Map normalized images (B, C, H, W) to unit vectors (B, dim), float32."""
        return self.project(images, spectrum)

    def project(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        features = self.encoder(images) if spectrum is None else self.encoder(images, "pooled", spectrum)
        return F.normalize(self.projection_head(features).float(), dim=-1)


class MomentumContrast(ObjectiveModule, ProjectedEncoder):
    """The query network with its queue and loss.

    Args:
        queue: number of keys in the queue, each (dim,) of length 1.
        seed: of the vectors that the queue starts with.
    """

    queue: Tensor
    queue_places: Tensor

    def __init__(
        self, encoder: Encoder, projection_head: ProjectionHead, dim: int, queue: int, temperature: float, seed: int
    ) -> None:
        super().__init__(encoder, projection_head)
        self.temperature = temperature
        generator = torch.Generator().manual_seed(fold_in(seed, "queue") % 2**63)
        vectors = torch.randn(queue, dim, generator=generator, device="cpu")
        self.register_buffer("queue", F.normalize(vectors, dim=-1))
        self.register_buffer("queue_places", torch.full((queue,), -1))

    def losses(
        self,
        images: Tensor,
        keys: Tensor,
        location_ids: Tensor | None = None,
        spectrum: Spectrum | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute InfoNCE (arXiv 1807.03748) of normalized images (B, C, H, W) with keys (B, dim) of location_ids (B,).

        Args:
            spectrum: what the bands of the images are, for encoders by wavelength.

        Returns:
            Loss of each sample, float32 (B,); whether its own key was nearest, (B,); queries (B, dim).
        """
        query = self.project(images, spectrum)
        with torch.autocast(query.device.type, enabled=False):
            positive = (query * keys).sum(1, keepdim=True)
            negatives = query @ self.queue.float().T
            if location_ids is not None:
                negatives = negatives.masked_fill(location_ids[:, None] == self.queue_places, -torch.inf)
            logits = torch.cat([positive, negatives], 1) / self.temperature
        labels = torch.zeros(len(query), dtype=torch.long, device=query.device)
        return F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == 0).float(), query


class MocoObjective(Objective):
    """MoCo in a training run."""

    module: MomentumContrast
    momentum: MomentumNetwork
    timestamps = 2
    keeps_average = True

    def __init__(
        self,
        config: PretrainConfig,
        normalize: Normalizer,
        manifests: Sequence[Manifest],
        initial: InitialWeights | None = None,
    ) -> None:
        super().__init__(config, normalize, manifests, initial)
        moco = cast(MocoConfig, config.objective)
        self.rate, self.queue_length = moco.momentum, moco.queue
        self.momentum = MomentumNetwork(ProjectedEncoder(self.module.encoder, self.module.projection_head))
        self._keys: list[Tensor] = []
        self._location_ids: list[Tensor] = []

    @classmethod
    def build_module(cls, config: PretrainConfig, bands: int, normalize: Normalizer | None = None) -> MomentumContrast:
        moco, encoder = cast(MocoConfig, config.objective), build_module_encoder(config, bands)
        head = ProjectionHead(encoder.feature_dim, moco.hidden, moco.dim, moco.head_norm, config.model.bn_group)
        return MomentumContrast(encoder, head, moco.dim, moco.queue, moco.temperature, config.run.seed)

    @classmethod
    def flops(cls, module: MomentumContrast, config: PretrainConfig, bands: int) -> Parts:
        """Operations of the query, forward and backward, and of the key; the queue has no gradient."""
        size, encoder = config.model.image_size, module.encoder
        views = add(encoder.training_flops(bands, size), encoder.flops(bands, size))
        return views | {"head": 4 * module.projection_head.flops() + 2 * 2 * module.queue.numel()}

    @classmethod
    def recomputed_flops(cls, module: MomentumContrast, config: PretrainConfig, bands: int) -> int:
        return module.encoder.recomputed_flops(bands, config.model.image_size, checkpointing=recomputes_blocks(config))

    def draws(self, samples: np.ndarray, sources: np.ndarray) -> Draws:
        views = {f"view {view}": self.draw_views(self.augment, samples, sources, f"view {view}") for view in (0, 1)}
        key, length = fold_in(self.seed, "shuffle", int(samples[0])), len(samples)
        for view in ("view 0", "view 1"):
            views |= self.draw_sensors(samples, sources, view)
        return views | {"shuffle": (permute(key, length, np.arange(length)),)}

    def loss(self, engine: ZeroEngine, batch: TileBatch, step: int) -> Tensor:
        images = self.normalized(batch.tiles, batch.tile_sources)
        query, key = (self.augment.views(images[batch.rows[:, view]], batch.draws[f"view {view}"]) for view in (0, 1))
        query_spectrum, key_spectrum = (self.seen_spectrum(batch, f"view {view}") for view in (0, 1))
        (order,) = batch.draws["shuffle"]
        keys = self._shuffled_keys(engine, key, order, key_spectrum)
        self._keys.append(keys)
        self._location_ids.append(batch.location_ids)
        losses, hits, queries = engine(query, keys, batch.location_ids, query_spectrum)
        self.scalars.add(feature_std=feature_spread(queries), contrast_accuracy=hits.mean())
        return self.mean_loss(losses, batch)

    def _shuffled_keys(
        self, engine: ZeroEngine, images: Tensor, order: Tensor, spectrum: Spectrum | None = None
    ) -> Tensor:
        """Compute keys in batch-norm groups of other samples than the queries', or statistics would reveal the pairs.

        They are shuffled within the micro batch, keyed by its first sample, without exchange between ranks (MoCo's
        shuffling BN).
        """
        keys = self.momentum(engine, images[order], shuffled(spectrum, order))
        return torch.empty_like(keys).index_copy_(0, order, keys)

    def after_step(self, engine: ZeroEngine, step: int) -> None:
        self.momentum.update(engine, self.rate)
        keys, location_ids = (distributed.all_gather(torch.cat(parts)) for parts in (self._keys, self._location_ids))
        self._reset()
        begin = step * len(keys) % self.queue_length
        module = cast(MomentumContrast, engine.module)
        module.queue[begin : begin + len(keys)] = keys.to(module.queue.dtype)
        module.queue_places[begin : begin + len(keys)] = location_ids

    def drop_step(self) -> None:
        super().drop_step()
        self._reset()

    def _reset(self) -> None:
        self._keys, self._location_ids = [], []

    def evaluate(self, engine: ZeroEngine, tiles: Tensor, numbers: np.ndarray, sources: Tensor) -> Evaluation:
        images = self.normalized(tiles, sources)
        query, key = (
            self.augment.random_views(images, numbers, fold_in(self.seed, f"validation view {view}")) for view in (0, 1)
        )
        with self.momentum.evaluating():
            keys = self.momentum(engine, key, self.spectrum(sources))
        losses, _, _ = engine.evaluation(query, keys, None, self.spectrum(sources))
        return Evaluation(losses)
