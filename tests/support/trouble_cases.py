"""Known problems of DeepSpeed users as test cases on real processes: `python trouble_cases.py FOLDER [CASE ...]`.

Each rank runs all cases in one process group and writes ``FOLDER/results-RANK.json``: the error of each, or null.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from safetensors.torch import save_file
from support.pieces import gather
from support.rank_cases import Cases
from support.trouble_network import (
    BATCH,
    SEED,
    Network,
    bare_steps,
    batch,
    close,
    engine,
    network,
    plain_losses,
    plain_training,
    resumed_from_dcp,
    resumed_from_file,
    train,
    weights,
)
from torch import Tensor
from torch.nn import functional as F

from pretrain import distributed
from pretrain.checkpointing.checkpoint import (
    SEAL,
    STATE,
    CheckpointError,
    find_damage,
    list_checkpoints,
    load_checkpoint,
    newest_verified,
    prune,
    read_state,
    save_checkpoint,
    set_aside,
    step_of,
    weights_hash,
)
from pretrain.checkpointing.local_copies import LocalCopies
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.checkpointing.tensor_files import TensorFiles
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.optimizers import build_adamw
from pretrain.engine.zero import ZeroEngine, deepspeed_config
from pretrain.engine.zero_state import local_state
from pretrain.models.initialize import initialize
from pretrain.weights.convert import main as convert

cases = Cases()


@cases.add
def frozen_parameters_are_in_checkpoints(folder: Path) -> None:
    for stage in (0, 1, 2, 3):
        zero = engine(network(frozen=True), stage)
        train(zero, 0, 2)
        kept = weights(zero)
        path = save_checkpoint(zero, folder / f"stage-{stage}", {"step": 2})
        other = Network(frozen=True)
        initialize(other, "other weights", SEED)
        loaded = engine(other, stage)
        load_checkpoint(loaded, path)
        assert "fixed.weight" in kept
        assert all(torch.equal(value, kept[name]) for name, value in weights(loaded).items())


@cases.add
def frozen_parameters_with_recomputed_activations(folder: Path) -> None:
    for stage in (2, 3):
        plain = train(engine(network(frozen=True), stage), 0, 3)
        close(train(engine(network(frozen=True, recompute=True), stage), 0, 3), plain)


@cases.add
def recomputed_activations_change_no_loss(folder: Path) -> None:
    close(train(engine(network(recompute=True)), 0, 4), plain_losses(4)[0])


@cases.add
def load_after_save_on_the_same_engine(folder: Path) -> None:
    zero = engine(network())
    train(zero, 0, 3)
    path = save_checkpoint(zero, folder, {"step": 3})
    first = train(zero, 3, 3)
    load_checkpoint(zero, path)
    assert train(zero, 3, 3) == first


@cases.add
def rank_dependent_control_flow_does_not_hang(folder: Path) -> None:
    """A non-finite loss on one rank makes all ranks skip the step, by one reduced decision."""
    from pretrain.config.run import GuardConfig
    from pretrain.resilience.guard import Guard

    guard, zero = Guard(GuardConfig()), engine(network())
    before = weights(zero)
    verdicts = []

    def accept(loss: Tensor, norm: Tensor) -> float | None:
        verdicts.append(guard.judge(loss, norm, stop=distributed.rank() == 1))
        return verdicts[-1].accepted_norm

    train(zero, 0, 1, float("nan") if distributed.rank() == distributed.world_size() - 1 else 1.0, accept)
    assert verdicts[-1].reason == "loss is non-finite"
    assert verdicts[-1].stop == (distributed.world_size() > 1)
    assert all(torch.equal(value, before[name]) for name, value in weights(zero).items())
    close(train(zero, 0, 3, 1.0, accept), plain_losses(3)[0])
    assert guard.skipped == 1 and guard.in_a_row == 0


@cases.add
def uneven_data_gives_equal_steps(folder: Path) -> None:
    from pretrain.data.stream import micro_batches

    world, rank = distributed.world_size(), distributed.rank()
    mine = list(micro_batches(6, 5, 4 * world, 2, rank, world))  # of 7 tiles or any other number
    assert distributed.gather_objects(len(mine)) == [10] * world
    everything = np.sort(np.concatenate(distributed.gather_objects(np.concatenate(mine))))
    assert everything.tolist() == list(range(6, 6 + 5 * 4 * world))


@cases.add
def momentum_networks_follow_fp32_weights(folder: Path) -> None:
    for stage, precision in ((3, "bf16"), (3, "fp32"), (1, "fp32")):
        module = network()
        momentum = MomentumNetwork(module)
        expected = {name: value.detach().clone() for name, value in module.named_parameters()}
        zero = engine(module, stage, precision)
        for step in range(3):
            train(zero, step, 1)
            momentum.update(zero, 0.996)
            for name, value in weights(zero).items():
                expected[name].lerp_(value, 0.004)
        owned = gather(momentum.pieces(), {name: momentum.shape(name) for name in momentum.tensor_names()})
        assert all(torch.allclose(owned[name], expected[name], rtol=1e-6, atol=1e-8) for name in expected)
        assert not torch.equal(owned["first.weight"], dict(network().named_parameters())["first.weight"])


@cases.add
def pretrained_weights_reach_a_partitioned_model(folder: Path) -> None:
    pretrained = {name: value + 0.25 for name, value in network().state_dict().items()}
    module = network()
    module.load_state_dict(pretrained)
    zero = engine(module)
    assert all(torch.equal(value, pretrained[name]) for name, value in weights(zero).items())
    plain = network()
    plain.load_state_dict(pretrained)
    x, _ = batch(0)
    assert torch.allclose(zero.evaluation(x), plain.eval()(x), rtol=1e-6)


@cases.add
def parameters_of_the_parent_are_trained(folder: Path) -> None:
    """Class token, positions and mask token belong to the module whose forward uses them."""
    zero = engine(network())
    train(zero, 0, 3)
    expected = plain_losses(3)[2]
    assert not torch.equal(expected["token"], torch.full((1, 16), 0.1))
    assert torch.allclose(weights(zero)["token"], expected["token"], rtol=1e-4)


@cases.add
def overlapped_communication_changes_no_loss(folder: Path) -> None:
    import deepspeed

    losses = {}
    for overlap in (False, True):
        for stage in (2, 3):
            module = network()
            zero = engine(module, stage)
            settings = deepspeed_config(zero.config.sized(0), BATCH // distributed.world_size(), 1, 0.0)
            settings["zero_optimization"]["overlap_comm"] = overlap
            module = network()
            optimizer = build_adamw(module, 1e-2, (0.9, 0.95), 0.1)
            bare, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
            bare.module.train()
            losses[overlap, stage] = [float(one) for one in bare_steps(bare, 4)]
    for stage in (2, 3):
        assert losses[True, stage] == losses[False, stage]
        assert np.isfinite(losses[True, stage]).all()


@cases.add
def silent_skips_are_seen(folder: Path) -> None:
    """Steps with infinite gradients are skipped with and without a guard, which is asked about them."""
    for stage, precision in ((3, "bf16"), (2, "bf16"), (3, "fp32"), (1, "fp32"), (3, "autocast")):
        zero = engine(network(), stage, precision)
        before, norms = weights(zero), []

        def accept(loss: Tensor, norm: Tensor, norms: list = norms) -> float | None:
            norms.append(float(norm))
            return norms[-1] if np.isfinite(norms[-1]) else None

        for asked in (None, accept):
            x, y = (part.chunk(distributed.world_size())[distributed.rank()] for part in batch(0))
            result = zero.step(iter([F.mse_loss(zero(x).float(), y) * float("inf")]), asked)
            assert not result.applied, (stage, precision, asked)
        assert len(norms) == 1 and not np.isfinite(norms[0])
        assert all(torch.equal(value, before[name]) for name, value in weights(zero).items())
        x, y = (part.chunk(distributed.world_size())[distributed.rank()] for part in batch(0))
        assert zero.step(iter([F.mse_loss(zero(x).float(), y)]), accept).applied


@cases.add
def refused_steps_leave_no_trace(folder: Path) -> None:
    """At every stage, weights, moments and Adam's step count are those of a run without the step."""
    for stage in (0, 1, 2, 3):
        zero = engine(network(), stage)
        train(zero, 0, 2)
        train(zero, 50, 1, accept=lambda loss, norm: None)
        close(train(zero, 2, 3), plain_losses(5)[0][2:])
        assert local_state(zero).adam_step == 5


@cases.add
def accumulation_gives_the_whole_batch(folder: Path) -> None:
    """ZeRO-2 and ZeRO-3 reduce each micro batch separately; the sums are kept in fp32."""
    for stage in (0, 1, 2, 3):
        close(train(engine(network(), stage, accumulation=4), 0, 4), plain_losses(4)[0])


@cases.add
def gradient_norms_are_those_before_clipping(folder: Path) -> None:
    for stage in (0, 1, 2, 3):
        norms: list[float] = []
        zero = engine(network(), stage, clip=0.01)
        losses = train(zero, 0, 3, accept=lambda loss, norm, norms=norms: norms.append(float(norm)) or norms[-1])
        expected, plain_norms, _ = plain_losses(3, clip=0.01)
        close(losses, expected)
        close(norms, plain_norms, 1e-4)
        assert min(norms) > 0.01


@cases.add
def initial_weights_do_not_depend_on_the_processes(folder: Path) -> None:
    """Each tensor is drawn from (seed, name); a tensor that is never drawn would be NaN."""
    module = Network()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name != "token":
                value.fill_(float("nan"))
    initialize(module, "troubles", SEED)
    zero = engine(module)
    assert all(torch.isfinite(value).all() for value in weights(zero).values())
    found = weights_hash(zero)
    (folder.parent / f"initial-{distributed.world_size()}-{distributed.rank()}.txt").write_text(found)


@cases.add
def groups_keep_their_own_rate_and_decay(folder: Path) -> None:
    for stage in (0, 1, 2, 3):
        module = network()
        names = [name for name, _ in module.named_parameters()]
        slow = [value for name, value in module.named_parameters() if name.startswith("first")]
        fast = [value for name, value in module.named_parameters() if not name.startswith("first")]
        groups = [
            {"params": slow, "lr": 1.0, "lr_scale": 0.25, "weight_decay": 0.5},
            {"params": fast, "lr": 1.0, "weight_decay": 0.0},
        ]
        zero = engine(module, stage, optimizer=torch.optim.SGD(groups, lr=1.0, momentum=0.9))
        zero.set_lr(0.1)
        before = weights(zero)
        train(zero, 0, 1)
        after = weights(zero)
        plain = network()
        F.mse_loss(plain(batch(0)[0]), batch(0)[1]).backward()
        gradients = {name: value.grad for name, value in plain.named_parameters()}
        for name in names:
            rate, decay = (0.025, 0.5) if name.startswith("first") else (0.1, 0.0)
            expected = before[name] - rate * (gradients[name] + decay * before[name])
            assert torch.allclose(after[name], expected, rtol=1e-5, atol=1e-7), (stage, name)


@cases.add
def truncated_checkpoints_are_not_chosen(folder: Path) -> None:
    zero = engine(network())
    for step in (1, 2, 3):
        train(zero, step, 1)
        save_checkpoint(zero, folder, {"step": step})
    if distributed.is_main():
        for path, name in ((folder / "step-00000003", "weights"), (folder / "step-00000002", "optimizer")):
            part = next(path.glob(f"{name}-00000-*"))
            part.write_bytes(part.read_bytes()[:-8])
    distributed.barrier()
    path, damaged = newest_verified(folder)
    assert path is not None and step_of(path) == 1
    assert [step_of(one) for one in damaged] == [3, 2]


@cases.add
def old_checkpoints_outlive_tainted_ones(folder: Path) -> None:
    """Every nth checkpoint is kept, damaged ones don't count as kept, and a rollback can request an earlier one."""
    zero = engine(network())
    for step in range(1, 8):
        train(zero, step, 1)
        save_checkpoint(zero, folder, {"step": step})
        if distributed.is_main():
            prune(folder, keep=2, keep_every=3)
    distributed.barrier()
    assert [step_of(path) for path in list_checkpoints(folder)] == [3, 6, 7]
    path, _ = newest_verified(folder, before=7)
    assert path is not None and step_of(path) == 6
    if distributed.is_main():
        set_aside([folder / "step-00000007"])
        prune(folder, keep=1, keep_every=0)
    distributed.barrier()
    assert [step_of(path) for path in list_checkpoints(folder)] == [6]
    assert find_damage(folder / "step-00000006") is None
    assert (folder / "latest").read_text() == "step-00000007\n"


@cases.add
def a_save_in_the_background_holds_the_state_of_its_step(folder: Path) -> None:
    for stage in (0, 1, 2, 3):
        zero = engine(network(frozen=True), stage)
        managers = [CheckpointManager(folder / f"{way}-{stage}", zero) for way in ("waited", "meanwhile")]
        for step in (2, 4):  # the second save reuses the memory of the first
            train(zero, step - 2, 2)
            waited = managers[0].save({"step": step})
            managers[1].begin({"step": step})
            kept = weights(zero)
            train(zero, 10, 2)
            path = managers[1].finish().path
            assert (path / SEAL).read_bytes() == (waited / SEAL).read_bytes()
            managers[1].load(path)
            assert all(torch.equal(value, kept[name]) for name, value in weights(zero).items())


@cases.add
def checkpoints_of_format_2_are_loaded(folder: Path) -> None:
    """Their tensors are whole, shared by the ranks, and have no index."""
    zero = engine(network())
    train(zero, 0, 2)
    path, old = save_checkpoint(zero, folder, {"step": 2}), folder / "step-00000001"
    expected = train(zero, 2, 2)
    if distributed.is_main():
        old.mkdir()
        for kind in ("weights", "optimizer"):
            with TensorFiles(path, kind) as files:
                names = sorted(files.names)
                for rank in (0, 1):
                    own = {name: files.get(name) for name in names[rank::2]}
                    save_file(own, old / f"{kind}-{rank:05d}-of-00002.safetensors")
        state = read_state(path) | {"format": 2, "weights_hash": "0123456789abcdef"}
        (old / STATE).write_text(json.dumps(state))
    distributed.barrier()
    load_checkpoint(zero, old)
    assert train(zero, 2, 2) == expected


@cases.add
def plain_torch_goes_on_from_an_exported_training(folder: Path) -> None:
    """From a torch file, from a DCP folder, and our engine from the checkpoint that is made of the folder."""
    for stage in (0, 3):
        zero = engine(network(), stage)
        train(zero, 0, 3)
        step = save_checkpoint(zero, folder / f"stage-{stage}", {"step": 3})
        file, dcp, back = folder / f"{stage}.pt", folder / f"{stage}.dcp", folder / f"back-{stage}" / step.name
        if distributed.is_main():
            for source, dest, to in ((step, file, "torch"), (step, dcp, "dcp"), (dcp, back, "checkpoint")):
                assert convert([str(source), str(dest), "--to", to]) == 0
        distributed.barrier()
        loaded = engine(Network(), stage)
        assert load_checkpoint(loaded, back)["step"] == 3 and find_damage(back) is None
        next_losses = train(zero, 3, 2)
        assert train(loaded, 3, 2) == next_losses
        expected = weights(zero)
        for model, optimizer in (resumed_from_file(file), resumed_from_dcp(dcp)):
            close(plain_training(model, optimizer, 3, 2), next_losses)
            for name, value in model.named_parameters():
                assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-7), (stage, name)


@cases.add
def nodes_restart_from_their_own_copies(folder: Path) -> None:
    """Two made-up nodes with a folder each; the files of tensors are taken away from the shared checkpoint."""
    rank, shared, aside = distributed.rank(), folder / "checkpoints", folder / "aside"
    disk = folder / f"disk-{rank}"

    def manager(zero: ZeroEngine) -> tuple[CheckpointManager, LocalCopies]:
        copies = LocalCopies(disk, shared, zero.config.zero_stage)
        return CheckpointManager(shared, zero, keep=1, copies=copies), copies

    def resumed() -> list[float]:
        loaded = engine(Network())
        again, _ = manager(loaded)
        again.load(again.newest() or Path())
        return train(loaded, 2, 2)

    with nodes_of_one_rank():
        zero = engine(network())
        saving, copies = manager(zero)
        for step in (1, 2):
            train(zero, step - 1, 1)
            path = saving.save({"step": step, "world_size": 2})
            copies.join()
        distributed.barrier()
        (kept,) = disk.glob("*/step-*")
        assert {file.name for file in kept.iterdir()} == {file.name for file in path.glob("*-of-*")}
        expected = train(zero, 2, 2)
        move(sorted(path.glob("*-of-*")), aside)
        assert resumed() == expected
        changed = kept / f"optimizer-{rank:05d}-of-00002.safetensors"
        changed.write_bytes(changed.read_bytes()[:-1] + b"!")
        try:
            resumed()
            raise AssertionError("the changed copies were read")
        except CheckpointError as error:
            assert f"{path.name}/optimizer-0000" in str(error) and "missing" in str(error), error
        move(sorted(aside.glob("optimizer-*")), path)
        assert resumed() == expected  # with shared files for the changed copies
        move(sorted(aside.glob("*-of-*")), path)
        if rank == 1:
            shutil.rmtree(disk)
        assert resumed() == expected  # with shared files for a new node


@contextmanager
def nodes_of_one_rank() -> Iterator[None]:
    """Let each rank be on a node of its own."""
    before = os.environ.get("SLURMD_NODENAME")
    os.environ["SLURMD_NODENAME"] = f"n{distributed.rank()}"
    distributed._gathered_hosts.cache_clear()
    try:
        yield
    finally:
        del os.environ["SLURMD_NODENAME"]
        os.environ.update({} if before is None else {"SLURMD_NODENAME": before})
        distributed._gathered_hosts.cache_clear()


def move(files: list[Path], folder: Path) -> None:
    """Move files on rank 0, while the others wait."""
    if distributed.is_main():
        folder.mkdir(exist_ok=True)
        for file in files:
            file.rename(folder / file.name)
    distributed.barrier()


if __name__ == "__main__":
    cases.main()
