"""The reference: every key of every config has a meaning, and the pages and schemas name it."""

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel
from support.processes import REPOSITORY

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config.reference import help_page, sections
from tools.docs_reference import config_reference

SCHEMAS = [PretrainConfig, FinetuneConfig]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_and_section_has_a_meaning(schema: type[BaseModel]) -> None:
    described = list(sections(schema))
    assert len([key for section in described for key in section.keys]) > 60
    assert [key.name for section in described for key in section.keys if not key.meaning.endswith(".")] == []
    assert [section.name for section in described if not section.meaning.endswith((".", ")"))] == []


def test_sections_of_a_registry_have_the_keys_of_each_of_its_configs() -> None:
    objectives = {section.choices: section for section in sections(PretrainConfig) if section.name == "objective"}
    assert list(objectives) == [("mae",), ("moco",), ("dino",)]
    queue = next(key for key in objectives[("moco",)].keys if key.name == "objective.queue")
    assert (queue.takes, queue.default) == ("a whole number of at least 1", "32768")


def test_defaults_are_those_of_the_section_that_holds_a_key() -> None:
    for schema, default in ((PretrainConfig, "3600"), (FinetuneConfig, "0")):
        watchdog = next(section for section in sections(schema) if section.name == "watchdog")
        assert {key.name: key.default for key in watchdog.keys}["watchdog.evaluation"] == default


@pytest.mark.parametrize("page", [help_page(PretrainConfig), config_reference()], ids=["terminal", "markdown"])
def test_a_page_has_a_key_with_all_that_is_known_of_it(page: str) -> None:
    for part in ("train.steps", "Optimizer steps.", "a whole number of at least 1", "required", "spec_vit_giant"):
        assert part in page


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_commands_print_page_and_schema_without_a_config(command: str) -> None:
    script = [sys.executable, str(REPOSITORY / "launch" / f"{command}.py")]
    page = subprocess.run([*script, "--help-config"], capture_output=True, text=True, check=True).stdout
    assert "run.dir\n" in page
    schema = json.loads(subprocess.run([*script, "--schema"], capture_output=True, text=True, check=True).stdout)
    assert schema["$defs"]["RunConfig"]["properties"]["dir"]["description"].startswith("Folder of the run")
    assert subprocess.run(script, capture_output=True, text=True).returncode == 2
