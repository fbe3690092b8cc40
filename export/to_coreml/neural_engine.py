"""Which operations of an ML program would leave Apple's Neural Engine, and why.

Apple publishes rules, see ``neural_engine_rules``, and no list of operations. What is known of those
comes from its article "Deploying Transformers on the Apple Neural Engine" (2022), coremltools'
documentation, and what engineers measured with Xcode's performance report. So this is advice to be
checked on a device, and not part of parity.
"""

from collections import Counter
from typing import Any

import torch

from pocketsam.export.to_coreml.channels_first import MAX_SIDE
from pocketsam.export.to_coreml.interpreter import MilProgram, torch_dtype

MAX_RANK = 4

UNSUPPORTED = {
    "cast": "changes of type run where the tensors meet the CPU",
    "equal": "comparisons run on the CPU or GPU",
    "less": "comparisons run on the CPU or GPU",
    "select": "choosing by a mask runs on the CPU or GPU",
    "logical_and": "logic runs on the CPU or GPU",
    "sin": "trigonometry runs on the CPU or GPU",
    "cos": "trigonometry runs on the CPU or GPU",
    "gather": "indexed reads run on the CPU or GPU",
}


def fallbacks(program: MilProgram, precision: str) -> list[dict[str, Any]]:
    """Each kind of operation that is expected to leave: ``operation``, ``count``, ``why``."""
    if precision == "fp32":
        total = sum(program.count_operations().values())
        return [{"operation": "all", "count": total, "why": "the engine computes in float16"}]
    found: Counter[tuple[str, str]] = Counter()
    for op in program.operations:
        shapes = [var.shape for var in op.outputs]
        if op.op_type in UNSUPPORTED:
            found[op.op_type, UNSUPPORTED[op.op_type]] += 1
        elif any(torch_dtype(var) == torch.float32 for var in op.outputs):
            found[op.op_type, "kept in float32, for values that float16 does not hold"] += 1
        elif any(len(shape) > MAX_RANK for shape in shapes):
            found[op.op_type, f"a tensor of rank over {MAX_RANK}"] += 1
        elif any(max(shape, default=0) > MAX_SIDE for shape in shapes):
            found[op.op_type, f"a side over {MAX_SIDE}"] += 1
    return [
        {"operation": kind, "count": count, "why": why} for (kind, why), count in sorted(found.items())
    ]
