"""Matrix products of a traced graph in bfloat16: what a potential is trained with where speed matters."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

_PRODUCTS: dict[Any, tuple[tuple[int, int], Any]] = {  # of aten: which arguments are multiplied, and by what
    torch.ops.aten.mm.default: ((0, 1), torch.ops.aten.mm.default),
    torch.ops.aten.bmm.default: ((0, 1), torch.ops.aten.bmm.default),
    torch.ops.aten.addmm.default: ((1, 2), torch.ops.aten.mm.default),
    torch.ops.aten.baddbmm.default: ((1, 2), torch.ops.aten.bmm.default),
}


def in_bfloat16(graph: GraphModule) -> GraphModule:
    """The graph with both factors of every matrix product rounded to bfloat16, everything else as it was.

    Products are summed in float32 by the hardware and rounded once more, so that only factors and results
    lose digits; their gradients are such products, too. Changes the graph in place.
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in _PRODUCTS:
            _convert(graph, node)
    graph.recompile()
    return graph


def _convert(graph: GraphModule, node: Node) -> None:
    factors, product = _PRODUCTS[node.target]
    if node.kwargs:
        return  # scaled sums: none are made by the models here

    def cast(value: Node, dtype: torch.dtype) -> Node:
        return graph.graph.call_function(torch.ops.aten._to_copy.default, (value,), {"dtype": dtype})

    with graph.graph.inserting_before(node):
        rounded = tuple(cast(node.args[k], torch.bfloat16) for k in factors)  # type: ignore[arg-type]
        out = cast(graph.graph.call_function(product, rounded), node.meta["val"].dtype)
        if factors[0] == 1:
            out = graph.graph.call_function(torch.ops.aten.add.Tensor, (out, node.args[0]))
    node.replace_all_uses_with(out)
    graph.graph.erase_node(node)
