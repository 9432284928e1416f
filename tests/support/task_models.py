"""Small models of every task kind with random weights, and their maps of scenes."""

import rasterio
import torch
from support.small_encoder import small_description, small_encoder
from support.tiles import NODATA, write_tile

from finetune.encoders.model_file import InputDescription, TaskModel
from finetune.heads.build import build_head
from finetune.predict.scene_map import predict_scene
from finetune.tasks import get_task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.initialize import initialize
from shards.sensors.sensor import get_sensor

CPU, ENMAP = torch.device("cpu"), get_sensor("enmap")
TASKS = {
    "segmentation": "sample_materials",
    "multilabel": "enmap_corine",
    "classification": "sample_covers",
    "regression": "hyperview",
    "pixel_regression": "sample_greenness",
}


def small_model(kind="segmentation", **described):
    """Return a model of a task kind, or only an encoder for the kind "features", with random weights."""
    encoder, told = small_encoder(), small_description(**described)
    inputs = InputDescription(told.sensor, told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, told.clip)
    if kind == "features":
        return TaskModel(encoder, told, inputs).eval()
    task = get_task(TASKS[kind])
    name = kind_of(task).published_heads[0]
    head = build_head(name, kind_of(task), encoder.feature_dim, encoder.stride)
    initialize(head, "head", 3)
    return TaskModel(encoder, told, inputs, name, head, task).eval()


def enmap_bands():
    """Return the changes to a description for the 202 bands of EnMAP."""
    told = {"wavelength_nm": list(ENMAP.wavelength_nm), "fwhm_nm": list(ENMAP.fwhm_nm)}
    return told | {"mu": [2000.0] * ENMAP.num_bands, "sigma": [1500.0] * ENMAP.num_bands}


def map_of(tmp_path, model, values, name="map.tif", overlap=0.5, batch=5):
    """Map a scene with these values; return pixels (bands, height, width), metadata and the summary."""
    scene = write_tile(tmp_path / "scene.tif", values, nodata=NODATA)
    summary = predict_scene(model, scene, tmp_path / name, overlap, batch, CPU)
    with rasterio.open(tmp_path / name) as file:
        return file.read(), file.profile, summary
