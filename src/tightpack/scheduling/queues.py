"""Who waits and who runs, both in order of arrival."""

from __future__ import annotations

from bisect import insort
from collections import deque
from itertools import count

from tightpack.requests.request import Request


class RequestQueues:
    """The waiting and the running requests, each oldest first.

    Requests that were preempted are older than any that never ran, so they wait at the front.
    """

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._age: dict[Request, int] = {}
        self._preempted: set[Request] = set()
        self._arrivals = count()

    @property
    def num_new(self) -> int:
        """Waiting requests that have never run."""
        return len(self.waiting) - len(self._preempted)

    def __contains__(self, request: Request) -> bool:
        return request in self._age

    def add(self, request: Request) -> None:
        self._age[request] = next(self._arrivals)
        self.waiting.append(request)

    def start(self, request: Request) -> None:
        """From waiting to running."""
        self._leave_waiting(request)
        insort(self.running, request, key=self._age.__getitem__)

    def put_back(self, request: Request) -> None:
        """From running to waiting, before everybody younger."""
        self.running.remove(request)
        self._preempted.add(request)
        age = self._age[request]
        place = next((i for i, other in enumerate(self.waiting) if self._age[other] > age), len(self.waiting))
        self.waiting.insert(place, request)

    def remove(self, request: Request) -> None:
        """Forget the request, wherever it stands."""
        if self._age.pop(request, None) is None:
            return
        if request in self.running:
            self.running.remove(request)
        else:
            self._leave_waiting(request)

    def _leave_waiting(self, request: Request) -> None:
        self._preempted.discard(request)
        if self.waiting[0] is request:  # the common case; a search is for aborts
            self.waiting.popleft()
        else:
            self.waiting.remove(request)
