"""Damaged and forged files of every kind that is read: right, or one line; no write outside, no memory for claims."""

import hashlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from support.mutations import Mutation, flip, flip_start, forge, forge_json
from support.small_encoder import small_description, small_encoder
from support.tiles import spectra, write_archive, write_tile

from shards.archive import Archive
from shards.arrays import read_npy, read_npz
from shards.build import merge, pack
from shards.codec import PRESETS
from shards.config import REPOSITORY, load_config
from shards.errors import ForgeError
from shards.foreign import GeoTiffTile, NpyTile
from shards.index import index_tars
from shards.listing import PackRecord, read_list, read_record
from shards.manifest import Manifest, SealedModel, ShardIndex
from shards.quarantine import Quarantine
from shards.raster import open_raster
from shards.reader import ShardReader
from shards.scan import Labels, PackConfig
from shards.scene import Metadata, Scene, SceneLimits
from shards.sensors import get_sensor
from tools.sample_scene import SceneOptions, make_scene

ENMAP, SIZE = get_sensor("enmap"), 8
TILE = spectra(1, SIZE)
SLACK = 96 << 20
"""Bytes that reading may take beside twice the files: buffers of fixed size, a tile or two."""


@dataclass(frozen=True)
class Target:
    """A file to damage, and what reads it.

    Attributes:
        make: writes a folder with the file and all that belongs to it.
        file: its name in the folder.
        read: whatever a user does with the folder; a ForgeError, or what was asked for.
        mutations: that keep what a checksum would otherwise refuse at once.
        count: in the short form.
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], object]
    mutations: tuple[Mutation, ...] = (flip,)
    count: int = 120


# ---- shards ----


def _pack(folder: Path) -> None:
    source = folder.parent / "packed"
    if not source.exists():
        values = write_archive(source / "tiles", SIZE)
        for key in values:
            location, timestamp = key.split("_")
            write_tile(source / "labels/enmap" / location / f"{timestamp}.tif", np.ones((SIZE, SIZE), np.uint8))
        config = PackConfig(size=SIZE, tiles_per_shard=4)
        pack(source / "tiles", source / "shards", config, labels=Labels(source / "labels"))
    shutil.copytree(source / "shards", folder)


def _read_shards(folder: Path, stage: bool = False) -> None:
    reader = ShardReader(folder, stage=folder / "stage" if stage else None)
    try:
        if stage:
            reader.prefetch(range(len(reader.manifest.shards)))
        out = np.empty((2, *reader.tile_shape), dtype=np.int16)
        for row in range(0, min(len(reader), 12) - 1, 2):
            reader.read([row, row + 1], out)
            reader.read_mask(row)
    finally:
        reader.close()


def _sealed(model: type[SealedModel]) -> Mutation:
    """Forged JSON with a checksum that fits: what a stranger could write."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        forged = forge({key: value for key, value in json.loads(data).items() if key != "checksum"}, rng)
        return _seal(forged)

    return mutate


def _seal(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True)
    return json.dumps(content | {"checksum": hashlib.sha256(text.encode()).hexdigest()}).encode()


def _read_forged_table(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["checksum"]
    manifest["table_sha256"] = hashlib.sha256((folder / manifest["table"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(_seal(manifest))
    _read_shards(folder)


def _read_forged_list(folder: Path) -> None:
    record = json.loads((folder / "pack.json").read_bytes())
    del record["checksum"]
    listed = folder / record["generations"][0]["list_name"]
    record["generations"][0]["list_sha256"] = hashlib.sha256(listed.read_bytes()).hexdigest()
    (folder / "pack.json").write_bytes(_seal(record))
    _merge_again(folder)


def _merge_again(folder: Path) -> None:
    for generation in read_record(folder).generations:
        read_list(folder, generation)
    merge(folder)


# ---- tiles and tars ----


def _write(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(content())

    return make


def _decode(codec: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        data = (folder / "tile").read_bytes()
        codec.decode(data)
        codec.decode(data, np.empty((ENMAP.num_bands, SIZE, SIZE), np.int16))

    return read


def _tiff() -> bytes:
    path = Path(f"/tmp/fuzz-{os.getpid()}.tif")
    data = write_tile(path, spectra(1, SIZE)).read_bytes()
    path.unlink()
    return data


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _tar_bytes(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for number in range(3):
            for name, data in (("tif", _tiff()), ("json", b'{"location": "a", "date": "2022-01-01", "lon": 1.5}')):
                member = tarfile.TarInfo(f"{'folder' * 20}/tile-{number}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _value_error(read: Callable[[bytes], object]) -> Callable[[Path], object]:
    """Of functions whose callers turn ValueError into a line."""

    def attempt(folder: Path) -> None:
        try:
            read((folder / "file").read_bytes())
        except ValueError as error:
            raise ForgeError(str(error)) from None

    return attempt


def _read_npz(folder: Path) -> None:
    try:
        read_npz(folder / "file")
    except ValueError as error:
        raise ForgeError(str(error)) from None


def _tile(preset: str) -> Callable[[Path], None]:
    return _write("tile", lambda: PRESETS[preset].encode(TILE))


def _tar(mode: str) -> Callable[[Path], None]:
    return _write("a.tar", lambda: _tar_bytes(mode))


def _read_archive(folder: Path) -> None:
    for _ in Archive(folder / "a.tar", "a.tar", ENMAP, SIZE).tiles(()):
        pass


def _text(name: str) -> Callable[[Path], None]:
    return _write(f"file{Path(name).suffix}", (REPOSITORY / name).read_bytes)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, histogram=np.zeros((4, 65536), np.int64), content=np.array("a" * 64))
    return buffer.getvalue()


# ---- products and rasters ----


def _product(base: Path) -> Path:
    """A product, made once."""
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
    """Entities of entities of entities."""
    levels = rng.randrange(2, 12)
    text = b'<!DOCTYPE x [<!ENTITY e0 "ha">'
    text += b"".join(b'<!ENTITY e%d "%s">' % (i, b"&e%d;" % (i - 1) * 20) for i in range(1, levels))
    begin = data.index(b"?>") + 2
    return data[:begin] + text + b"]>" + data[begin:].replace(b"</", b"&e%d;</" % (levels - 1), 1)


# ---- text ----


def _aliases(data: bytes, rng: random.Random) -> bytes:
    """Aliases of aliases of aliases, some of what they are in, or brackets without end."""
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

    load_config(folder / "file.yaml", [], PretrainConfig)


def _read_bands(folder: Path) -> None:
    get_sensor(str(folder / "file.csv"))


# ---- models, checkpoints, results ----


def _encoder(folder: Path) -> None:
    from pretrain.models import save_encoder

    folder.mkdir()
    save_encoder(folder / "encoder.safetensors", small_encoder().state_dict(), small_description())


def _read_encoder(folder: Path) -> None:
    from pretrain.models import load_encoder

    load_encoder(folder / "encoder.safetensors")


def _task_model(folder: Path) -> None:
    from finetune.heads import build_head
    from finetune.model_file import InputDescription, TaskModel, save_task_model
    from finetune.tasks import get_task

    folder.mkdir()
    told, task, encoder = small_description(), get_task("sample_materials"), small_encoder()
    inputs = InputDescription(told.sensor, told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, told.clip)
    head = build_head("linear", task.kind, encoder.feature_dim, len(task.outputs), encoder.stride)
    save_task_model(folder / "model.safetensors", TaskModel(encoder, told, inputs, "linear", head, task))


def _read_task_model(folder: Path) -> None:
    from finetune.model_file import load_task_model

    load_task_model(folder / "model.safetensors")


def _forge_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Another header of the right length: tensors, offsets, or what it says of the model."""
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
    from pretrain.checkpoint import find_damage, list_checkpoints, read_state
    from pretrain.models import load_encoder

    (step,) = list_checkpoints(folder)
    find_damage(step)
    read_state(step)
    load_encoder(folder)


def _read_resealed(folder: Path) -> None:
    _seal_checkpoint(folder)
    _read_checkpoint(folder)


def _results(folder: Path) -> None:
    from finetune.results import Result, RunResults, write_results
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
    from finetune.results import read_results

    read_results(folder)


def _quarantine(folder: Path) -> None:
    folder.mkdir()
    lines = [{"dataset": "abc", "row": row, "key": "k", "reason": "r"} for row in range(4)]
    (folder / "quarantine-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_quarantine(folder: Path) -> None:
    quarantine = Quarantine(np.arange(100), "abc", 50, folder, 0)
    quarantine.substitute(7, 1) if 7 in quarantine else None


TARGETS = {
    "manifest": Target(_pack, "manifest.json", lambda f: _read_shards(f, True), (_sealed(Manifest), flip), 300),
    "index": Target(_pack, "shard-000001.index.json", merge, (_sealed(ShardIndex), flip), 160),
    "table": Target(_pack, "tiles-000.npy", _read_forged_table, (flip, flip_start), 300),
    "record": Target(_pack, "pack.json", _merge_again, (_sealed(PackRecord), flip), 100),
    "list": Target(_pack, "sources-000.tsv", _read_forged_list, count=120),
    "shard": Target(_pack, "shard-000000.tar", _read_shards, count=60),
    "compact tile": Target(_tile("compact"), "tile", _decode(PRESETS["compact"]), (flip, flip_start), 200),
    "fast tile": Target(_tile("fast"), "tile", _decode(PRESETS["fast"]), (flip, flip_start), 200),
    "npy tile": Target(_write("tile", lambda: _npy(TILE)), "tile", _decode(NpyTile()), (flip_start,), 200),
    "tiff tile": Target(_write("tile", _tiff), "tile", _decode(GeoTiffTile("enmap")), (flip, flip_start), 120),
    "npy": Target(_write("file", lambda: _npy(TILE[0])), "file", _value_error(read_npy), (flip, flip_start), 300),
    "npz": Target(_write("file", _npz), "file", _read_npz, (flip, flip_start), 80),
    "foreign tar": Target(_tar("w:"), "a.tar", lambda f: index_tars(f, "enmap", 1), (flip, flip_start), 25),
    "archive": Target(_tar("w:"), "a.tar", _read_archive, (flip, flip_start), 60),
    "packed archive": Target(_tar("w:gz"), "a.tar", _read_archive, count=40),
    "metadata": Target(_metadata, "file", _read_metadata, (flip, _entities), 200),
    "zipped product": Target(_zip_product, "product.zip", _read_zip, count=12),
    "ENVI header": Target(_envi, "tile.hdr", _read_envi, count=100),
    "task": Target(_text("finetune/tasks/sample_materials.yaml"), "file.yaml", _read_task, (flip, _aliases), 200),
    "config": Target(_text("configs/pretrain/mae/base.yaml"), "file.yaml", _read_config, (flip, _aliases), 100),
    "band table": Target(_text("shards/sensor_tables/enmap.csv"), "file.csv", _read_bands, (flip, flip_start), 200),
    "encoder": Target(_encoder, "encoder.safetensors", _read_encoder, (_forge_safetensors, flip_start), 15),
    "task model": Target(_task_model, "model.safetensors", _read_task_model, (_forge_safetensors, flip_start), 15),
    "seal": Target(_checkpoint, "step-00000010/checkpoint.json", _read_checkpoint, (forge_json, flip), 20),
    "state": Target(_checkpoint, "step-00000010/state.json", _read_resealed, (forge_json, flip), 10),
    "results": Target(_results, "results.json", _read_results, (forge_json, flip), 200),
    "results' arrays": Target(_results, "examples.npz", _read_results, count=80),
    "quarantine": Target(_quarantine, "quarantine-00000.jsonl", _read_quarantine, count=200),
}


def _outside(folder: Path, inside: Path) -> dict[str, bytes]:
    """Everything in a folder but what is below another."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and inside not in path.parents
    }


def _try(target: Target, real: Path, tmp_path: Path, seeds: range) -> None:
    sandbox = tmp_path / "sandbox"
    (sandbox / "user").mkdir(parents=True)
    for folder in (sandbox, sandbox / "user"):
        (folder / "victim.txt").write_text("not yours")
    original = (real / target.file).read_bytes()
    work = sandbox / "user" / "folder"
    size = sum(path.stat().st_size for path in real.rglob("*") if path.is_file())
    for seed in (None, *seeds):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(real, work)
        if seed is not None:
            mutate = target.mutations[seed % len(target.mutations)]
            (work / target.file).write_bytes(mutate(original, random.Random(seed)))
            if seed % 5 == 0:  # it makes everything slower
                tracemalloc.start()
        try:
            target.read(work)
        except ForgeError as error:
            assert seed is not None, error  # the real one is read
            assert str(error).strip() and str(error).isprintable() and len(str(error)) < 2000, (seed, str(error))
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2 * size + SLACK, f"seed {seed}: {peak >> 20} MiB for {size >> 10} KiB"
        assert len(_outside(sandbox, work)) == 2, f"seed {seed}: files outside were written or removed"
    assert set(_outside(sandbox, work).values()) == {b"not yours"}


@pytest.fixture(scope="module")
def reals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with the real files, made when they are asked for."""
    base = tmp_path_factory.mktemp("real")

    def make(name: str) -> Path:
        folder = base / name.replace(" ", "-").replace("'", "")
        if not folder.exists():
            TARGETS[name].make(folder)
        return folder

    return make


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_and_forged_files_are_read_or_refused_in_one_line(name, reals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _try(TARGETS[name], reals(name), tmp_path, range(TARGETS[name].count))


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_many_more_damaged_and_forged_files(name, reals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _try(TARGETS[name], reals(name), tmp_path, range(10_000, 10_000 + 20 * TARGETS[name].count))
