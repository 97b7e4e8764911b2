"""Ray in this machine, started small and quiet, or a Ray cluster that runs already."""

from __future__ import annotations

import logging

import ray

# Ray gives its daemons 30 seconds, which a machine that is busy with something else can take.
_ATTEMPTS = 3


def start_ray(num_cpus: float, with_gpus: bool, object_store_memory: int, *, show_logs: bool = False) -> None:
    """A Ray of this process, which ends with `ray.shutdown` or with the process.

    num_cpus: what replicas will ask for; nothing is measured. with_gpus: let Ray find the GPUs.
    Raises ConnectionError when it does not come up.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(
                num_cpus=max(1, int(-(-num_cpus // 1))),
                num_gpus=None if with_gpus else 0,
                include_dashboard=False,
                object_store_memory=object_store_memory,
                log_to_driver=show_logs,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises nothing more special
            ray.shutdown()
            if attempt == _ATTEMPTS:
                raise ConnectionError(f"Ray did not start: {error}") from error


def join_ray(address: str, *, show_logs: bool = False) -> None:
    """Raises ConnectionError where there is no Ray cluster at `address`."""
    ray.init(address=address, log_to_driver=show_logs, logging_level=logging.ERROR)
