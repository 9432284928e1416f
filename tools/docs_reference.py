"""The generated reference page of the documentation: every key of the configs, as Markdown."""

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config import ConfigModel
from shards.config.reference import Key, Section, sections

TITLES: dict[str, type[ConfigModel]] = {"Pretraining": PretrainConfig, "Fine-tuning": FinetuneConfig}


def config_reference() -> str:
    """Return a page with every key of the pretraining and fine-tuning configs."""
    lines = [
        "# Configuration",
        "",
        "Every key, with what it takes, its default and its meaning. `--help-config` prints the same in a terminal, "
        "and `--schema` a JSON schema for editors; with `--config FILE`, both know the keys of its plugins.",
    ]
    for title, schema in TITLES.items():
        lines += ["", f"## {title}"]
        for section in sections(schema):
            lines += ["", *_markdown(section)]
    return "\n".join(lines) + "\n"


def _markdown(section: Section) -> list[str]:
    lines = [section.meaning]
    if section.name:
        chosen = f": {', '.join(section.choices)}" if section.choices else ""
        lines = [f"### `{section.name}`{chosen}", "", section.meaning]
    if section.keys:
        lines += ["", "| key | takes | default | meaning |", "|---|---|---|---|", *map(_row, section.keys)]
    return lines


def _row(key: Key) -> str:
    default = key.default if key.default == "required" else f"`{key.default}`"
    cells = (f"`{key.name}`", key.takes, default, key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(config_reference(), end="")
