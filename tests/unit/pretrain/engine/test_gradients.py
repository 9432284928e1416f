"""Norms are those of all gradients in float64, and clipping is torch's."""

import torch

from pretrain.engine.gradients import clip, local_norm


def _gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((30, 4), (7,), ())]


def test_the_norm_is_that_of_all_elements_in_float64():
    gradients = _gradients()
    flat = torch.cat([gradient.flatten() for gradient in gradients]).double()
    norm = local_norm(gradients)
    assert norm.dtype == torch.float64
    torch.testing.assert_close(norm, flat.norm(), rtol=1e-12, atol=0)


def test_gradients_are_clipped_as_torch_clips_them():
    for largest in (0.1, 1e9):
        ours, theirs = _gradients(), _gradients()
        clip(ours, local_norm(ours), largest)
        parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in theirs]
        for parameter, gradient in zip(parameters, theirs, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, largest)
        torch.testing.assert_close(ours, theirs)
    clip([], torch.tensor(1.0), 0.1)  # a refused step has none


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    assert not local_norm([torch.ones(3), torch.tensor([1.0, float("nan")])]).isfinite()
