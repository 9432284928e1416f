"""What a training changes: batch norms keep or adapt their statistics, and only the chosen parts learn."""

import pytest
import torch
from torch import Tensor

from finetune.config import FullConfig
from finetune.encoders.model_file import InputDescription, TaskModel
from finetune.heads.build import build_head
from finetune.heads.registry import HEADS
from finetune.losses.loss import build_loss
from finetune.losses.registry import LOSSES
from finetune.protocols.tuned_model import TunedModel
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import LabelSummary, kind_of
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.initialize import initialize
from pretrain.models.lora import add_updates
from pretrain.models.registry import build_encoder
from pretrain.weights.description import EncoderDescription
from shards.sensors.sensor import get_sensor

KIND = kind_of(get_task("sample_materials"))
ENMAP = get_sensor("enmap")
BANDS = [list(ENMAP.wavelength_nm), list(ENMAP.fwhm_nm), [0.0] * 202, [1.0] * 202]


def _model(name: str) -> TaskModel:
    encoder = build_encoder(name, 16, 4, bn_group=4)
    initialize(encoder, "pretrain.encoder", 0)
    head = build_head("conv" if encoder.is_transformer else "fcn", KIND, encoder.feature_dim, encoder.stride, 4)
    initialize(head, "head", 0)
    for number, norm in enumerate([*grouped_batch_norms(encoder), *grouped_batch_norms(head)]):
        generator = torch.Generator().manual_seed(number)
        norm.running_mean.copy_(0.1 * torch.randn(norm.running_mean.shape, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    description = EncoderDescription(name, 16, 4, "enmap", *BANDS, "mae", 0, "x", "t")
    return TaskModel(encoder, description, InputDescription("enmap", *BANDS, 1.0), task=KIND.task, head=head)


def _tuned(name: str, trained: str = "full", **recipe: object) -> TunedModel:
    model = _model(name)
    if trained == "lora":
        add_updates(model.encoder, ("proj",), 2, 4.0, 0)
    loss = build_loss(LOSSES.validate(KIND.loss), KIND, LabelSummary(counts=torch.ones(KIND.outputs).numpy()))
    return TunedModel(model, loss, trained, FullConfig(drop_path=0.0, **recipe))  # type: ignore[arg-type]


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, KIND.outputs, (4, 16, 16), generator=generator).short()
    return torch.randn(4, 202, 16, 16, generator=generator), labels


@pytest.mark.parametrize("name", ["spec_vit_tiny", "spec_resnet50"])
def test_training_begins_with_what_the_probe_computes(name):
    model, (images, labels) = _tuned(name), _batch()
    norms = [*grouped_batch_norms(model.encoder), *grouped_batch_norms(model.head)]
    before = [norm.running_mean.clone() for norm in norms]
    loss, scores = model.train()(images, labels)
    loss.backward()
    assert all(norm.flush()[-1] == 0 for norm in norms)  # no statistics were recorded
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())
    with torch.no_grad():
        expected = model.eval()(images, labels)[1]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "adapting"), [({"bn": "adapt"}, ("encoder", "head")), ({"start": "random"}, ("head",))]
)
def test_batch_norms_adapt_where_the_recipe_says_so(recipe, adapting):
    model, (images, labels) = _tuned("spec_vit_tiny", **recipe), _batch()
    model.train()(images, labels)[0].backward()
    recorded = {
        name for name in ("encoder", "head") for norm in grouped_batch_norms(getattr(model, name)) if norm.flush()[-1]
    }
    assert recorded == set(adapting)


def test_blocks_above_the_last_layer_of_a_head_do_not_learn():
    model = _model("spec_vit_tiny")
    model.head_config = HEADS.validate({"name": "upernet", "layers": [2, 9]})
    loss = build_loss(LOSSES.validate(KIND.loss), KIND, LabelSummary(counts=torch.ones(KIND.outputs).numpy()))
    tuned = TunedModel(model, loss, "full", FullConfig())
    still = {name.split(".")[2] for name, one in tuned.encoder.named_parameters() if not one.requires_grad}
    assert still == {"10", "11"}


def test_only_the_chosen_parts_learn():
    learning = {
        name for name, one in _tuned("spec_vit_tiny", "adapter").encoder.named_parameters() if one.requires_grad
    }
    assert learning
    assert all("spectral_adapter" in name for name in learning)
    first = {name for name, one in _tuned("spec_vit_tiny", "blocks").encoder.named_parameters() if one.requires_grad}
    assert learning < first
    assert {name.split("blocks.")[1][0] for name in first if "blocks." in name} == {"0", "1"}
    updates = {name for name, one in _tuned("spec_vit_tiny", "lora").encoder.named_parameters() if one.requires_grad}
    assert {name.partition("attn.")[2] for name in updates} == {"proj.lora.a", "proj.lora.b"}
