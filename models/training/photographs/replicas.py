"""Processes that train one network together: each computes its own views, and gradients are averaged.

On a CPU, one thread for each replica waits for the others once a step; the threads of one process wait
for each other at every layer, which is slow where other programs want the cores, too.
"""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Replicas:
    """One of several processes that train together.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Returns whether this process writes the files and the log."""
        return self.rank == 0

    def average(self, model: nn.Module, message: float) -> float:
        """Averages gradients and BatchNorm statistics over all processes.

        Args:
            model: after the backward pass.
            message: a number; that of the first process counts.

        Returns:
            The message of the first process.
        """
        if self.count == 1:
            return message
        tensors = [p.grad for p in model.parameters() if p.grad is not None]
        tensors += [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
        tail = torch.tensor([message * self.count if self.first else 0.0])
        flat = torch.cat([*(t.flatten() for t in tensors), tail])
        dist.all_reduce(flat)
        flat /= self.count
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
        return float(flat[-1])


def run_replicas(count: int, job: Callable[[Replicas], Any]) -> Any:
    """Runs a job in this process and in ``count - 1`` others, and returns what this one returns.

    The others are forked, so call it before torch computes on several threads.
    """
    if count == 1:
        return job(Replicas())
    fork = multiprocessing.get_context("fork")
    with TemporaryDirectory() as folder:
        others = [
            fork.Process(target=_join, args=(Path(folder), rank, count, job))
            for rank in range(1, count)
        ]
        for other in others:
            other.start()
        try:
            return _join(Path(folder), 0, count, job)
        finally:
            for other in others:
                other.join(timeout=30)
                other.kill()


def _join(folder: Path, rank: int, count: int, job: Callable[[Replicas], Any]) -> Any:
    """Connects to the other processes, then does the job on one thread."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = (folder / "rendezvous").as_uri()
    dist.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=count, timeout=timedelta(days=2)
    )
    try:
        return job(Replicas(rank, count))
    finally:
        dist.destroy_process_group()
