"""torch.compile for the fake device: Inductor decides what is fused, and its kernels are counted, not generated.

A compiled graph is lowered and scheduled by Inductor as for a GPU, which gives its kernels with their bytes and FLOPs.
When the graph is called, it runs operation by operation for its results' shapes, and those kernels are counted instead.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from tools.fake_cuda.costs import Cost, cost
from tools.fake_cuda.counter import counted_instead


@cache
def install() -> None:
    """Let Inductor lower graphs without compiling them, from now on."""
    from torch._inductor import compile_fx, config

    config.joint_graph_constant_folding = False  # it computes constants on the device
    compile_graph = compile_fx.compile_fx

    def lower_graph(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        return compile_graph(graph, inputs, **({"inner_compile": _lower} | options))

    compile_fx.compile_fx = lower_graph  # type: ignore[assignment]


def _lower(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Stand in for Inductor's ``compile_fx_inner``: its steps up to the schedule of kernels."""
    from functorch.compile import make_boxed_func
    from torch._inductor import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    kinds = {name: options.get(name, False) for name in ("is_inference", "is_backward")}
    compile_fx.view_to_reshape(graph)
    with torch.no_grad():
        mode = compile_fx.fake_tensor_prop(graph, inputs)
    compile_fx._recursive_record_original_output_strides(graph)
    operations = deepcopy(graph)
    with V.set_fake_mode(mode), DebugContext():
        compile_fx._recursive_post_grad_passes(graph, is_inference=kinds["is_inference"])
        lowering = GraphLowering(graph, inputs, shape_env=compile_fx.shape_env_from_inputs(inputs), **kinds)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
            lowering.run(*inputs)
            lowering._update_scheduler()
            kernels = [kernel for node in lowering.scheduler.nodes if (kernel := _cost(node)).bytes]

    def call(*arguments: Tensor) -> Any:
        with counted_instead(kernels):
            return operations(*arguments)

    return make_boxed_func(call)


def _cost(node: Any) -> Cost:
    """Return the cost of one kernel of the schedule; those that Inductor generates have no FLOPs that count."""
    moved = int(node.get_read_write_buffers_sizes())
    operations = [_operation_cost(origin) for origin in node.node.origins] if node.is_extern() else []
    flops = sum(operation.flops for operation in operations)
    return Cost(moved, flops, any(operation.half for operation in operations if operation.flops))


def _operation_cost(operation: Node) -> Cost:
    if not isinstance(operation.target, OpOverload):
        return Cost(0, 0, False)
    args, kwargs = map_arg((operation.args, operation.kwargs), lambda node: node.meta["val"])
    return cost(operation.target, args, kwargs, operation.meta["val"])
