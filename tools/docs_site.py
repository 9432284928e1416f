"""MkDocs hooks (`make docs`): pages generated from the code and from files outside docs/."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools.docs_commands import command_reference
from tools.docs_reference import config_reference
from tools.docs_tree import source_tree

REPOSITORY = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the references of configs, commands and the source tree, the changelog and the contributing guide."""
    pages = {
        "reference/configs.md": config_reference(),
        "reference/commands.md": command_reference(),
        "reference/tree.md": source_tree(),
        "changelog.md": (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files
