"""Trains a terratorch task for two batches on an encoder of this project: run where terratorch is installed."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from terratorch.registry import BACKBONE_REGISTRY
from terratorch.tasks import SemanticSegmentationTask
from torch.utils.data import DataLoader

import pretrain.weights.terratorch_backbone  # noqa: F401 (registers the backbone)
from pretrain.weights.files import save_encoder
from pretrain.weights.pretrained import load_pretrained

CLASSES = 3


def main(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    save_encoder(path, small_encoder().state_dict(), small_description())
    images = torch.randint(0, 6000, (8, BANDS, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()

    backbone = BACKBONE_REGISTRY.build("spectralforge", location=path, layers=[5, -1])
    assert backbone.out_channels == [192, 192]
    assert torch.equal(backbone(images)[1], load_pretrained(path).features(images))

    model = {
        "backbone": "spectralforge",
        "backbone_location": str(path),
        "decoder": "FCNDecoder",
        "num_classes": CLASSES,
    }
    task = SemanticSegmentationTask(model, model_factory="EncoderDecoderFactory", loss="ce", ignore_index=-1, lr=1e-2)
    encoder = task.model.encoder.encoder.encoder
    before = {name: one.clone() for name, one in encoder.named_parameters()}
    tiles = [{"image": image, "mask": torch.randint(0, CLASSES, (SIZE, SIZE))} for image in images]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_steps=2, default_root_dir=folder, **quiet).fit(task, DataLoader(tiles, batch_size=4))
    assert all(not torch.equal(one, before[name]) for name, one in encoder.named_parameters() if "norm" in name)
    assert task(images).output.shape == (8, CLASSES, SIZE, SIZE)
    print("trained")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
