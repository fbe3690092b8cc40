"""Forward passes that start in the middle: what comes before a layer is computed once."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Prefix:
    """An encoder's blocks on one image, kept to start at a later one: exact, as they do not change.

    Blocks are the encoder's own modules, and those in lists inside it. Those that run several times in
    a pass, or give no tensor, are computed each time.

    Args:
        encoder: the network.
        image: ``[1, 3, S, S]``.
    """

    def __init__(self, encoder: nn.Module, image: Tensor) -> None:
        lists = [encoder, *(m for m in encoder.modules() if isinstance(m, nn.ModuleList))]
        blocks = {child for parent in lists for child in parent.children()}
        self._blocks = {name: m for name, m in encoder.named_modules() if m in blocks}
        self._started: dict[str, int] = {}
        self._ended: dict[str, tuple[int, Any]] = {}
        with ExitStack() as stack:
            for name, module in self._blocks.items():
                before, after = self._hooks(name)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
            self._count = 0
            with torch.inference_mode():
                encoder(image)

    def _hooks(self, name: str) -> tuple[Any, Any]:
        """Returns the hooks that note when a block starts, and when it ends with what."""

        def before(_module: nn.Module, _inputs: Any) -> None:
            self._count += 1
            self._started.setdefault(name, self._count)

        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._count += 1
            is_first = name not in self._ended
            self._ended[name] = self._count, output if is_first else None

        return before, after

    @contextmanager
    def starting_at(self, layer: str) -> Iterator[None]:
        """Runs passes of the same image from the block that holds a layer, while it is open.

        Args:
            layer: its path in the encoder.
        """
        around = [n for name, n in self._started.items() if f"{layer}.".startswith(f"{name}.")]
        start = max(around, default=0)
        skipped = []
        for name, (end, output) in self._ended.items():
            if end < start and isinstance(output, Tensor):
                skipped.append(self._blocks[name])
                self._blocks[name].forward = _constant(output)
        try:
            yield
        finally:
            for module in skipped:
                del module.forward


def _constant(output: Tensor) -> Any:
    return lambda *_inputs: output
