"""Histories of single registers, and whether they are linearizable (Wing and Gong 1993, with the memory of Lowe 2017).

An operation is (begin, end, kind, value): a write of `value`, or a read that gave it; `end` None: nobody knows whether it was
carried out, nor when (a write whose outcome is unknown). A history is linearizable when every operation can be given a moment
between its begin and its end, of those unknown any later moment or none, so that each read gives what was written last.
"""
import math
from typing import NamedTuple, Optional


class Op(NamedTuple):
    begin: float
    end: Optional[float]
    kind: str  # "write", "read"
    value: object


def linearizable(history, initial=None):
    """None when it is, else the operations of a longest beginning that is, and those that cannot follow it."""
    ops = [op for op in history if not (op.kind == "read" and op.end is None)]  # a read without an answer says nothing
    ops.sort(key=lambda op: op.begin)
    ends = [math.inf if op.end is None else op.end for op in ops]
    must = sum(1 << i for i, op in enumerate(ops) if op.end is not None)
    seen, longest = set(), 0
    stack = [(0, initial)]
    while stack:
        done, value = stack.pop()
        if done & must == must:
            return None
        if (done, value) in seen:
            continue
        seen.add((done, value))
        if bin(done).count("1") > bin(longest).count("1"):
            longest = done
        # Whatever is next began before any operation that is not done yet had ended.
        first_end = min(ends[i] for i in range(len(ops)) if not done >> i & 1)
        for i, op in enumerate(ops):
            if op.begin > first_end:
                break
            if done >> i & 1 or (op.kind == "read" and op.value != value):
                continue
            stack.append((done | 1 << i, op.value if op.kind == "write" else value))
    rest = [op for i, op in enumerate(ops) if not longest >> i & 1]
    return [op for i, op in enumerate(ops) if longest >> i & 1], rest
