"""Model cards: the description of an encoder file as Markdown."""

from typing import Any

from pretrain.weights.description import UNKNOWN, EncoderDescription

_OBJECTIVES = {
    "mae": "masked autoencoding (MAE, arXiv 2111.06377)",
    "moco": "MoCo-v2 (arXiv 2003.04297)",
    "dino": "DINO (arXiv 2104.14294)",
}


def model_card(description: EncoderDescription, parameters: int, file: str) -> str:
    """Return the model card of an encoder as Markdown.

    Args:
        parameters: its number of weights, without buffers.
        file: name of its file.
    """
    sections = [
        f"# {description.architecture}, {description.objective or UNKNOWN}",
        "An encoder of hyperspectral images, pretrained without labels. Parameter names and shapes are those that "
        "SpectralEarth (arXiv 2408.08447) publishes.",
        _table(description, parameters),
        "## Training",
        _training(description),
        "## Input",
        _input(description),
        "## Use",
        _use(description, file),
        "## Evaluation",
        "None is claimed here: measure it on your task, beside an untrained encoder (docs/evaluation.md).",
        "## License",
        "To be filled in by whoever publishes the file. The license of the training data can bind its weights.",
    ]
    return "\n\n".join(sections) + "\n"


def _table(description: EncoderDescription, parameters: int) -> str:
    rows = {"Architecture": description.architecture, "Parameters": f"{parameters:,}"}
    if "vit" in description.architecture:  # a ResNet takes any size
        rows["Image"] = f"{description.image_size} x {description.image_size} px"
        rows["Token patch"] = f"{description.patch_size} x {description.patch_size} px"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _training(description: EncoderDescription) -> str:
    teacher = "; these are the weights of the teacher, the network's average over training"
    objective = _OBJECTIVES.get(description.objective, description.objective or UNKNOWN)
    lines = [
        f"- Objective: {objective}{teacher if description.network == 'teacher' else ''}.",
        f"- Tiles seen: {f'{description.samples_seen:,}' if description.samples_seen else UNKNOWN}.",
        f"- Dataset, by content hash: `{description.dataset or UNKNOWN}`.",
        f"- Code: SpectralForge {description.version or UNKNOWN}.",
    ]
    if description.max_error:
        unit = "digital numbers, or a share of each band's noise in the tile"
        lines.append(f"- Pixels of the dataset: stored with a maximum error of {description.max_error} ({unit}).")
    if sources := description.config.get("data", {}).get("sources"):
        shares = (f"{source.get('name') or source['shards']} ({source['weight']:g})" for source in sources)
        lines.append(f"- Sources, by relative share: {', '.join(shares)}.")
    if description.init:
        lines.append(f"- Initialized from: {_lineage(description.init)}.")
    if description.config:
        lines.append(f"- {_recipe(description)}The run's whole config is in the file's header.")
    return "\n".join(lines)


def _lineage(init: dict[str, Any]) -> str:
    """What training began from, and what that file was trained from in turn."""
    seen = f", {init['samples_seen']} tiles seen" if init.get("samples_seen") else ""
    objective = f", {init['objective']}" if init.get("objective") else ""
    earlier = init.get("init")
    before = f"; it was initialized from {_lineage(earlier)}" if earlier and isinstance(earlier, dict) else ""
    return f"`{init.get('file', UNKNOWN)}` (SHA-256 `{init.get('sha256', UNKNOWN)}`{objective}{seen}){before}"


def _recipe(description: EncoderDescription) -> str:
    train, optim, run = (description.config.get(section, {}) for section in ("train", "optim", "run"))
    known = {
        "steps": train.get("steps"),
        "global batch": train.get("global_batch"),
        "learning rate": optim.get("lr"),
        "seed": run.get("seed"),
    }
    text = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return f"{text[:1].upper()}{text[1:]}. " if text else ""


def _input(description: EncoderDescription) -> str:
    lines = [f"- Sensor: {description.sensor}, {description.bands} bands" + _range(description) + "."]
    if description.mu:
        cut = f", cut at ±{description.clip:g}" if description.clip is not None else ""
        lines.append(f"- Digital numbers (int16), (x - mu) / sigma per band{cut}; missing pixels (-32768) become 0.")
        lines.append("- mu and sigma are in the file's header and applied by `encode`.")
    else:
        lines.append("- Normalization: unknown.")
    if description.by_wavelength:
        ranges = ", ".join(f"{low:.0f} to {high:.0f} nm" for low, high in description.ranges_nm) or UNKNOWN
        lines.append(f"- Takes bands of any sensor, by centers and widths; trained on {ranges}.")
    elif description.takes_any_bands:
        lines.append("- The weights take any number of bands from 75 on, normalized with statistics of their sensor.")
    return "\n".join(lines)


def _range(description: EncoderDescription) -> str:
    centers = description.wavelength_nm
    return f" from {min(centers):.0f} to {max(centers):.0f} nm" if centers else ""


def _use(description: EncoderDescription, file: str) -> str:
    size = description.image_size
    return f"""```python
import spectralforge

encoder = spectralforge.load_encoder("{file}")
tiles = spectralforge.open_dataset("my-shards")  # tiles[i]: int16 ({description.bands}, height, width)
features = encoder.encode(tiles[0][:, :{size}, :{size}])  # float32 (1, D)
```"""
