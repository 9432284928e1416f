"""Weighted nearest neighbors on features (arXiv 1805.01978, as DINO evaluates), for the probe and for evaluation."""

import torch
from torch import Tensor

QUERIES = 4096
"""Queries that are compared with all keys at once."""


def nearest_vote(queries: Tensor, keys: Tensor, values: Tensor, neighbors: int, temperature: float) -> Tensor:
    """Average the values of the nearest keys, weighted by the softmax of cosine similarity over ``temperature``.

    Args:
        queries: features of unit length (N, D).
        keys: features of unit length (M, D).
        values: what each key votes for, (M, K): one-hot classes, or numbers.
        neighbors: keys that vote for a query; all where there are fewer.

    Returns:
        float32 (N, K).
    """
    voted = []
    for part in queries.split(QUERIES):
        similarity, nearest = (part @ keys.T).topk(min(neighbors, len(keys)), dim=1)
        weights = torch.softmax(similarity / temperature, dim=1)
        voted.append((weights[:, :, None] * values[nearest].float()).sum(1))
    return torch.cat(voted)
