"""Fuzz targets: products, rasters, configs, models and results."""

import hashlib
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from support.fuzz import Target, write_file
from support.mutations import flip, flip_start, forge, forge_json
from support.small_encoder import small_description, small_encoder
from support.tiles import spectra

from shards.config import REPOSITORY, load_config
from shards.sensors.sensor import get_sensor
from shards.sources.limits import SceneLimits
from shards.sources.product import Metadata
from shards.sources.raster import open_raster
from shards.sources.scene import Scene
from tools.sample_scene import SceneOptions, make_scene

ENMAP, SIZE = get_sensor("enmap"), 8
TILE = spectra(1, SIZE)


# ---- products and rasters ----


def _product(base: Path) -> Path:
    """Return a product, which is written once."""
    made = list(base.glob("ENMAP*"))
    return made[0] if made else make_scene(base, SceneOptions(size=40))


def _zip_product(folder: Path) -> None:
    product = _product(folder.parent)
    folder.mkdir()
    with zipfile.ZipFile(folder / "product.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in product.iterdir():
            file.write(path, f"product/{path.name}")


def _read_zip(folder: Path) -> None:
    limits = SceneLimits(cloud=None, nodata=None)
    for _ in Scene(folder / "product.zip", "product.zip", ENMAP, SIZE, limits).tiles(()):
        pass


def _envi(folder: Path) -> None:
    folder.mkdir()
    tile = spectra(1, SIZE)
    with rasterio.open(
        folder / "tile.bsq", "w", driver="ENVI", count=len(tile), height=SIZE, width=SIZE, dtype="int16"
    ) as file:
        file.write(tile)
    header = folder / "tile.hdr"
    centers = ", ".join(f"{center:g}" for center in ENMAP.wavelength_nm)
    header.write_text(header.read_text() + f"wavelength units = Nanometers\nwavelength = {{{centers}}}\n")


def _read_envi(folder: Path) -> None:
    with open_raster(folder / "tile.bsq") as raster:
        assert raster.grid.height > 0 and isinstance(raster.date, str)
        raster.read(raster.select(ENMAP)[:1], rasterio.windows.Window(0, 0, 4, 4))


def _metadata(folder: Path) -> None:
    product = _product(folder.parent)
    folder.mkdir()
    shutil.copy(next(product.glob("*METADATA.XML")), folder / "file")


def _read_metadata(folder: Path) -> None:
    Metadata.parse((folder / "file").read_bytes(), "file")


def _entities(data: bytes, rng: random.Random) -> bytes:
    """Insert nested XML entities."""
    levels = rng.randrange(2, 12)
    text = b'<!DOCTYPE x [<!ENTITY e0 "ha">'
    text += b"".join(b'<!ENTITY e%d "%s">' % (i, b"&e%d;" % (i - 1) * 20) for i in range(1, levels))
    begin = data.index(b"?>") + 2
    return data[:begin] + text + b"]>" + data[begin:].replace(b"</", b"&e%d;</" % (levels - 1), 1)


# ---- text ----


def _aliases(data: bytes, rng: random.Random) -> bytes:
    """Insert nested YAML aliases, some of them recursive, or endless brackets."""
    levels = rng.randrange(2, 12)
    lines = [b"a0: &a0 [x, y]"] + [
        b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, levels)
    ]
    choice = rng.randrange(4)
    if choice == 0:
        return b"\n".join([*lines, b"name: *a%d" % (levels - 1)])
    if choice == 1:
        return data + b"\nextra: &x [*x]\n"
    if choice == 2:
        return data + b"\nextra: " + b"[" * rng.randrange(1, 5000)
    return b"\n".join(lines) + b"\n" + data


def _read_task(folder: Path) -> None:
    from finetune.tasks import get_task

    get_task(str(folder / "file.yaml"))


def _read_config(folder: Path) -> None:
    from pretrain.config import PretrainConfig

    load_config(folder / "file.yaml", ["run.dir=run", "data.shards=shards", "train.steps=10"], PretrainConfig)


def _read_bands(folder: Path) -> None:
    get_sensor(str(folder / "file.csv"))


def _text(name: str) -> Callable[[Path], None]:
    return write_file(f"file{Path(name).suffix}", (REPOSITORY / name).read_bytes)


# ---- models, checkpoints, results ----


def _encoder(folder: Path) -> None:
    from pretrain.weights.files import save_encoder

    folder.mkdir()
    save_encoder(folder / "encoder.safetensors", small_encoder().state_dict(), small_description())


def _read_encoder(folder: Path) -> None:
    from pretrain.weights.files import load_encoder

    load_encoder(folder / "encoder.safetensors")


def _task_model(folder: Path) -> None:
    from finetune.encoders.model_file import InputDescription, TaskModel, save_task_model
    from finetune.heads.build import build_head
    from finetune.tasks import get_task
    from finetune.tasks.kinds.kind import kind_of

    folder.mkdir()
    told, task, encoder = small_description(), get_task("sample_materials"), small_encoder()
    inputs = InputDescription(told.sensor, told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, told.clip)
    head = build_head("linear", kind_of(task), encoder.feature_dim, encoder.stride)
    save_task_model(folder / "model.safetensors", TaskModel(encoder, told, inputs, "linear", head, task))


def _read_task_model(folder: Path) -> None:
    from finetune.encoders.model_file import load_task_model

    load_task_model(folder / "model.safetensors")


def _forge_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Forge a header of the right length: tensors, offsets, or metadata of the model."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    told = header["__metadata__"]
    if rng.random() < 0.7:
        key = rng.choice(list(told))
        told[key] = json.dumps(forge(json.loads(told[key]), rng))
    else:
        header = forge(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _checkpoint(folder: Path) -> None:
    from safetensors.torch import save_file

    step = folder / "step-00000010"
    step.mkdir(parents=True)
    weights = {f"encoder.{name}": tensor for name, tensor in small_encoder().state_dict().items()}
    save_file(weights, step / "weights-00000-of-00001.safetensors")
    told = small_description()
    state = {
        "format": 2,
        "step": 10,
        "samples_seen": 160,
        "config": {
            "model": {"name": told.architecture, "image_size": told.image_size, "patch_size": told.patch_size},
            "objective": {"name": "mae"},
        },
        "data": {name: getattr(told, name) for name in ("sensor", "wavelength_nm", "fwhm_nm", "mu", "sigma")}
        | {"content_hash": "f" * 64},
    }
    (step / "state.json").write_text(json.dumps(state))
    _seal_checkpoint(folder)


def _seal_checkpoint(folder: Path) -> None:
    step = folder / "step-00000010"
    files = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in step.iterdir()
        if path.name != "checkpoint.json"
    }
    (step / "checkpoint.json").write_text(json.dumps({"format": 1, "files": files}))


def _read_checkpoint(folder: Path) -> None:
    from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints, read_state
    from pretrain.weights.files import load_encoder

    (step,) = list_checkpoints(folder)
    find_damage(step)
    read_state(step)
    load_encoder(folder)


def _read_resealed(folder: Path) -> None:
    _seal_checkpoint(folder)
    _read_checkpoint(folder)


def _results(folder: Path) -> None:
    from finetune.evaluation.results import Result, RunResults, write_results
    from finetune.tasks import get_task

    folder.mkdir()
    one = Result("pretrained", "frozen", "linear", 0, 1.0, 1e-3, 2, {"miou": 0.5}, {"miou": 0.4}, {"iou": [0.4, None]})
    write_results(
        folder,
        RunResults(
            task=get_task("sample_materials"),
            encoders={"pretrained": {"name": "a", "sha256": "a" * 64}},
            data={"tiles": {"test": 2}, "sensor": "enmap"},
            results=[one],
            tiles=["a", "b"],
            places=["a", "b"],
            seen=None,
            baseline=None,
            cost={"features": 1.0},
            rgb=np.zeros((1, 8, 8, 3), np.uint8),
            labels=np.zeros((1, 8, 8), np.int16),
        ),
    )


def _read_results(folder: Path) -> None:
    from finetune.evaluation.results import read_results

    read_results(folder)


TARGETS = {
    "metadata": Target(_metadata, "file", _read_metadata, (flip, _entities), 200),
    "zipped product": Target(_zip_product, "product.zip", _read_zip, count=12),
    "ENVI header": Target(_envi, "tile.hdr", _read_envi, count=100),
    "task": Target(_text("finetune/tasks/sample_materials.yaml"), "file.yaml", _read_task, (flip, _aliases), 200),
    "config": Target(_text("configs/pretrain/mae/base.yaml"), "file.yaml", _read_config, (flip, _aliases), 100),
    "band table": Target(_text("shards/sensors/tables/enmap.csv"), "file.csv", _read_bands, (flip, flip_start), 200),
    "encoder": Target(_encoder, "encoder.safetensors", _read_encoder, (_forge_safetensors, flip_start), 15),
    "task model": Target(_task_model, "model.safetensors", _read_task_model, (_forge_safetensors, flip_start), 15),
    "seal": Target(_checkpoint, "step-00000010/checkpoint.json", _read_checkpoint, (forge_json, flip), 20),
    "state": Target(_checkpoint, "step-00000010/state.json", _read_resealed, (forge_json, flip), 10),
    "results": Target(_results, "results.json", _read_results, (forge_json, flip), 200),
    "results' arrays": Target(_results, "examples.npz", _read_results, count=80),
}
