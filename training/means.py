"""The numbers of each step of an epoch, without waiting for a GPU in every step."""

from __future__ import annotations

import torch
from torch import Tensor

from training import processes

STEPS_PER_READING = 20  # on a GPU: reading a number waits until all work before it is done


class StepValues:
    """A row of numbers for each step, kept where it was computed and copied to the host every few steps.

    On a CPU each row is read at once. On a GPU the host works up to `STEPS_PER_READING` steps ahead, so a value that is
    not finite is found that many steps late at most; `read` still says in which step it was.

    `past` (n, k + 1) are the n steps before a state that was saved within the epoch, as `over_processes` gave them.
    """

    def __init__(self, device: torch.device, past: Tensor | None = None) -> None:
        self.device = device
        self.every = 1 if device.type == "cpu" else STEPS_PER_READING
        self.pending: list[Tensor] = []
        self.rows: list[list[float]] = [] if past is None else past[:, :-1].tolist()
        self.weights: list[float] = [] if past is None else (past[:, -1] / processes.count()).tolist()

    def add(self, row: Tensor, weight: float = 1.0) -> None:
        """Keep the row (k,) of a step, which counts with `weight` in the means."""
        self.pending.append(row.detach())
        self.weights.append(weight)

    @property
    def due(self) -> bool:
        """Whether it is time to read."""
        return len(self.pending) >= self.every

    def read(self) -> list[tuple[int, list[float]]]:
        """The steps, from 1 on, and rows that were not read yet. This waits for the device."""
        first = len(self.rows) + 1
        if self.pending:
            self.rows += torch.stack(self.pending).tolist()
            self.pending.clear()
        return list(enumerate(self.rows[first - 1 :], first))

    def means(self) -> Tensor:
        """The weighted means (k,) of all rows read so far, float64 on the host; 0 where no row has a weight."""
        rows = torch.tensor(self.rows, dtype=torch.float64)
        weights = torch.tensor(self.weights[: len(rows)], dtype=torch.float64)
        shares = weights / weights.mean() if any(self.weights) else weights
        return (rows * shares[:, None]).mean(dim=0)

    def over_processes(self) -> Tensor:
        """(n, k + 1), float64 on the host: the rows read so far, weighted means over the processes, and the sum of
        their weights. All processes must call it, each having read as many rows."""
        weights = torch.tensor(self.weights[: len(self.rows)], dtype=torch.float64)[:, None]  # (n, 1)
        rows = torch.tensor(self.rows, dtype=torch.float64)  # (n, k)
        if processes.count() == 1:
            return torch.cat([rows, weights], dim=1)
        total = torch.cat([rows * weights, weights], dim=1).to(self.device)
        processes.sum_in_place(total)
        return torch.cat([total[:, :-1] / total[:, -1:].clamp(min=1e-12), total[:, -1:]], dim=1).cpu()

    def means_over_processes(self) -> Tensor:
        """The weighted means (k,) of the rows of all processes, each of which must have read as many."""
        return processes.mean(self.means(), self.device, sum(self.weights[: len(self.rows)]))
