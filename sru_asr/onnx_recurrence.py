"""The recurrence in ONNX's operators: what `sru_asr.onnx` puts in the place of our own.

Only the state is sequential: a Scan computes it, and everything that reads it, the reset gate and
the highway, is arithmetic on whole sequences after it. Importing this needs onnxscript.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import FLOAT, graph, opset18, script
from onnxscript.values import Opset

op: Any = opset18  # whose annotations do not know the constants that it takes
BACKWARDS = -(2**63)  # the end of a slice that runs down to the first step

# What is sequential: state, forget gate before it has seen the state, u0, v of the forget gate,
# whether a step is real. The annotation only says that there are two outputs, of any precision.


@script(Opset("sru_asr", 1), default_opset=op)
def scan_states(c0, uf, u0, vf, real) -> tuple[FLOAT, FLOAT]:  # type: ignore[no-untyped-def]
    @graph()
    def step(c, uf_t, u0_t, real_t):  # type: ignore[no-untyped-def]
        f = op.Sigmoid(op.Add(uf_t, op.Mul(vf, c)))
        new = op.Add(u0_t, op.Mul(f, op.Sub(c, u0_t)))
        kept = op.Where(real_t, new, c)
        return kept, op.Identity(kept)

    c_n, c = op.Scan(c0, uf, u0, real, body=step, num_scan_inputs=3)
    return c_n, c


def recurrence_forward(
    u: Any,
    v: Any,
    b: Any,
    x: Any = None,
    c0: Any = None,
    lengths: Any = None,
    mask: Any = None,
    bidirectional: bool = False,
    alpha: float = 1.0,
    activation: str = "identity",
    keep_every: int = 0,
) -> Any:
    """Translate ``sru_asr::recurrence_forward``, for ``custom_translation_table``.

    Arguments are symbolic tensors and constants; their meaning, shapes and the results are the
    operator's (`sru_asr.reference.sru_recurrence`, ``csrc/ops.cpp``). Directions are an axis of
    their own, (T, B, dirs, H), so that one Scan runs both: the backward one over reversed time.
    """
    lanes, directions = u.shape[2], 2 if bidirectional else 1
    hidden = u.shape[3] // directions
    shape = op.Shape(u)
    steps, batch = op.Gather(shape, ints(0)), op.Gather(shape, ints(1))
    as_state = op.Concat(batch, ints(directions, hidden), axis=0)
    as_sequence = op.Concat(steps, as_state, axis=0)

    def by_direction(tensor: Any, to: Any) -> Any:
        return op.Reshape(op.CastLike(tensor, b), to)

    def number(value: float) -> Any:
        # Of what the graph computes in: a number by itself would be float32.
        return op.CastLike(op.Constant(value=ir.tensor(value, dtype=ir.DataType.DOUBLE)), b)

    lane = [by_direction(op.Gather(u, i, axis=2), as_sequence) for i in range(lanes)]
    pair = ints(2, directions, hidden)
    b = op.Reshape(b, pair)
    v = op.Expand(number(0.0), pair) if v is None else op.Reshape(v, pair)
    bf, br, vf, vr = (op.Gather(t, i, axis=0) for t in (b, v) for i in (0, 1))
    c0 = op.Expand(number(0.0), as_state) if c0 is None else by_direction(c0, as_state)

    if lengths is None:
        real = op.Expand(True, op.Concat(steps, ints(1, 1, 1), axis=0))
    else:
        time = op.Range(0, op.Squeeze(steps), 1)
        real = op.Less(op.Unsqueeze(time, [1, 2, 3]), op.Unsqueeze(lengths, [0, 2, 3]))

    def reverse(tensor: Any) -> Any:
        """Turn the backward direction's time around."""
        if not bidirectional:
            return tensor
        ahead = op.Slice(tensor, [0], [1], [2])
        back = op.Slice(tensor, [1], [2], [2])
        return op.Concat(ahead, op.Slice(back, [-1], [BACKWARDS], [0], [-1]), axis=2)

    running = op.Concat(real, real, axis=2) if bidirectional else real
    c_n, c = scan_states(c0, reverse(op.Add(lane[1], bf)), reverse(lane[0]), vf, reverse(running))
    before = op.Concat(op.Unsqueeze(c0, [0]), op.Slice(c, [0], [-1], [0]), axis=0)
    c, before = reverse(c), reverse(before)

    r = op.Sigmoid(op.Add(op.Add(lane[2], br), op.Mul(vr, before)))
    if mask is not None:
        r = op.Mul(by_direction(mask, as_state), r)
    g = op.Tanh(c) if activation == "tanh" else c
    if lanes == 4 or x is not None:
        highway = lane[3] if lanes == 4 else op.Mul(by_direction(x, as_sequence), number(alpha))
        h = op.Add(highway, op.Mul(op.Sub(g, highway), r))
    else:
        h = op.Mul(g, r)
    if lengths is not None:
        h = op.Where(real, h, number(0.0))
    h = op.Reshape(op.CastLike(h, u), op.Concat(steps, batch, ints(u.shape[3]), axis=0))
    c_n = op.Reshape(c_n, op.Concat(batch, ints(u.shape[3]), axis=0))
    # The kept states are the backward pass's; inference keeps none.
    return h, c_n, op.Slice(h, [0], [0], [0])


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))
