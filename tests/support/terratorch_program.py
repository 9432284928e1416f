"""Trains a terratorch task on an encoder of this project, with the lines of docs/weights.md.

Requires terratorch: `python terratorch_program.py FOLDER`.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from support.documents import python_code
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from torch.utils.data import DataLoader

import spectralforge
from pretrain.weights.files import save_encoder

CLASSES = 5


def main(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    save_encoder(path, small_encoder().state_dict(), small_description())
    images = torch.randint(0, 6000, (8, BANDS, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()
    names: dict = {}
    exec(python_code("weights.md", "terratorch").replace("encoder.safetensors", str(path)), names)
    task = names["task"]

    backbone = task.model.encoder
    assert backbone.out_channels == [192] * 4
    assert torch.equal(backbone(images)[-1], spectralforge.load_encoder(path).features(images))

    network = backbone.encoder.encoder
    before = {name: one.clone() for name, one in network.named_parameters()}
    tiles = [{"image": image, "mask": torch.randint(0, CLASSES, (SIZE, SIZE))} for image in images]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_steps=2, default_root_dir=folder, **quiet).fit(task, DataLoader(tiles, batch_size=4))
    assert all(not torch.equal(one, before[name]) for name, one in network.named_parameters() if "blocks" in name)
    assert task(images).output.shape == (8, CLASSES, SIZE, SIZE)
    print("trained")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
