"""The engine: a thread that decodes all requests, of which some wait, some join and some leave at every step."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from learn2pd.errors import UserError, first_line
from learn2pd.models.loading import Model
from learn2pd.serving.batch import Batch, Event, Request, Ticket

log = logging.getLogger(__name__)


class QueueFull(UserError):
    """The queue is full."""


class Closed(UserError):
    """The engine takes no more requests."""


class Engine:
    """Decodes requests in a thread of its own.

    Requests that share method, sampling and length of the canvas form a batch. The engine takes one step of every
    batch in turn. In float32 every request gets exactly what it would get alone.

    Args:
        model: The model.
        rows: The most requests that are decoded at one time.
        queue: The most requests that wait for a row.

    Attributes:
        steps: The steps that were taken, over all batches.
        row_steps: The requests that took part in these steps.
    """

    def __init__(self, model: Model, rows: int = 16, queue: int = 1024) -> None:
        self.model = model
        self.max_rows = rows
        self.max_queue = queue
        self.steps = 0
        self.row_steps = 0
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._batches: dict[object, Batch] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="learn2pd-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of requests that are being decoded."""
        return sum(batch.open_rows for batch in list(self._batches.values()))

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return not self._closed and self._thread.is_alive()

    def submit(self, asked: Sequence[tuple[Request, Callable[[Event], object]]]) -> list[Ticket]:
        """Let requests be answered: all of them, or none where they do not fit into the queue.

        Args:
            asked: Each request, and the function that receives its events as for `Ticket`. It must return at once.

        Returns:
            The tickets by which the requests can be cancelled.

        Raises:
            QueueFull: As many requests as allowed are waiting.
            Closed: The engine was closed.
        """
        tickets = [Ticket(request, on_event) for request, on_event in asked]
        with self._changed:
            if not self.alive:
                raise Closed("the server is stopping: it takes no more requests")
            if len(self._waiting) + len(tickets) > self.max_queue:
                raise QueueFull(
                    f"{len(self._waiting)} requests are waiting, and at most {self.max_queue} may: try again later"
                )
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """Decode a request no more, and tell it nothing more. Its row is free from the next step on.

        Args:
            ticket: The ticket of the request, which may have been answered.
        """
        with self._changed:
            if ticket.open and ticket in self._waiting:
                self._waiting.remove(ticket)
            ticket.open = False

    def close(self) -> None:
        """Stop the engine. Requests without an answer are told so."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._has_work():
                self._take_turn()
        finally:
            with self._changed:
                self._closed = True
            left = [*self._waiting, *(ticket for batch in self._batches.values() for ticket, _ in batch.rows)]
            for ticket in left:
                ticket.close(Closed("the server is stopping: the request was not finished"))

    def _has_work(self) -> bool:
        """Wait until there is something to decode, and return False where the engine was closed instead."""
        with self._changed:
            while not (self._closed or self._waiting or self._batches):
                self._changed.wait()
            return not self._closed

    def _take_turn(self) -> None:
        """Take one step of every batch."""
        with self._changed:
            newcomers = self._admit()
        for group, batch in list(self._batches.items()):
            self._step(batch, newcomers.get(group, []))
            if not batch.open_rows:
                del self._batches[group]

    def _admit(self) -> dict[object, list[Ticket]]:
        """Give the free rows to the requests that wait longest, and return these by their group."""
        newcomers: dict[object, list[Ticket]] = {}
        for _ in range(min(self.max_rows - self.running, len(self._waiting))):
            ticket = self._waiting.popleft()
            try:
                group = ticket.request.group
                if group not in self._batches:
                    self._batches[group] = Batch(self.model, ticket.request)
                newcomers.setdefault(group, []).append(ticket)
            except Exception as error:  # noqa: BLE001  a component's own bug
                _fail([ticket], error)
        return newcomers

    def _step(self, batch: Batch, newcomers: list[Ticket]) -> None:
        """Take one step of a batch. What goes wrong ends the requests of this batch and no others."""
        self.steps += 1
        self.row_steps += batch.open_rows + len(newcomers)
        try:
            batch.step(newcomers)
        except Exception as error:  # noqa: BLE001  out of memory, or a component's own bug
            _fail([*newcomers, *(ticket for ticket, _ in batch.rows)], error)


def _fail(tickets: Sequence[Ticket], error: Exception) -> None:
    """Tell requests what went wrong."""
    log.error("a batch of %d requests failed: %s", len(tickets), first_line(error), exc_info=error)
    for ticket in tickets:
        ticket.close(UserError(f"decoding failed: {first_line(error)}"))
