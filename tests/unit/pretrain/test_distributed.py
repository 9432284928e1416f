"""Each process finds its own device, however many of its node's devices it sees; errors name hosts."""

import os

import pytest
import torch

from pretrain import distributed
from pretrain.weights import hub_ranks
from shards.errors import ConfigError


@pytest.fixture
def node(monkeypatch):
    """Let this process be one of a node's, which sees some devices; returns the device that it makes current."""
    monkeypatch.setattr(os, "environ", {})
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def launch(local_rank: int, visible: int, **environment: str) -> torch.device:
        os.environ.clear()
        os.environ.update(LOCAL_RANK=str(local_rank), **environment)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        distributed.adopt_device()
        return chosen[-1]

    return launch


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"),
    [(0, 8, 0), (7, 8, 7), (0, 1, 0), (7, 1, 0), (3, 2, 1)],  # all devices of a node, one each, two each
)
def test_a_process_takes_the_device_that_it_sees(node, local_rank, visible, index):
    assert node(local_rank, visible) == torch.device("cuda", index)
    assert os.environ["LOCAL_RANK"] == str(index)  # what DeepSpeed reads
    assert distributed.device() == torch.device("cuda", index)
    assert distributed.local_rank() == local_rank
    distributed.adopt_device()  # a second start in this process
    assert (distributed.device().index, distributed.local_rank()) == (index, local_rank)


def test_the_local_rank_of_open_mpi_stays_equal_to_ours(node):
    node(5, 1, OMPI_COMM_WORLD_LOCAL_RANK="5")
    assert os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == os.environ["LOCAL_RANK"] == "0"


def test_one_process_of_a_node_downloads_where_each_sees_one_device(node, monkeypatch):
    node(5, 1)
    turns: list[bool] = []
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "raise_on_all_ranks", lambda work: turns.append(work is not hub_ranks.Path))
    hub_ranks.fetch_on_all_ranks("hf://a/b", lambda location: hub_ranks.Path(location))
    assert turns == [False, False, True]  # it waits for the process with local rank 0


def test_on_a_cpu_there_is_no_device_to_choose(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.device() == torch.device("cpu")


def test_an_error_that_some_ranks_have_names_a_host_and_is_no_misuse(monkeypatch):
    def fail():
        raise ConfigError("no such folder")

    monkeypatch.setenv("SLURMD_NODENAME", "n02")
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [None, value])
    with pytest.raises(distributed.HostError, match="rank 0 on n02: no such folder; 1 of 2 ranks") as raised:
        distributed.raise_on_all_hosts(fail)
    assert raised.value.exit_code == 1 and raised.value.everywhere
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, value])
    with pytest.raises(ConfigError, match=r"^no such folder$"):
        distributed.raise_on_all_hosts(fail)
    assert distributed.raise_on_all_hosts(lambda: 7) == 7
