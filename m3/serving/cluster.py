"""`m3 serve --replicas N`: Ray on this machine, or a cluster that runs already, and the models on it.

In: `Fleet` and `Settings`. Out: nothing until SIGTERM or SIGINT; then all of it is taken down.

Ray on this machine is started for this server alone, and ends with it: without a dashboard, without reports to Ray's makers, and
closed by a token to whoever else reaches its ports (Ray listens at all addresses of the machine, and who may speak to it may run
code there).
"""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from m3.serving.fleet import Fleet
from m3.serving.settings import Settings

logger = logging.getLogger(__name__)
APPLICATION = "m3"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 is too short for a machine that loads models meanwhile
    "RAY_worker_niceness": "0",  # Ray's 15 lets replicas starve beside whatever else runs
}
"""Of Ray on this machine, where it is not set."""


def run(fleet: Fleet, settings: Settings, address: str | None = None) -> int:
    """Serves. `address`: of a Ray cluster, such as `auto`; None: starts one here.

    Raises:
        ValueError: port 0; the replicas are to have more CPUs or GPUs than this machine has.
    """
    if settings.port == 0:
        raise ValueError("port is 0; expected a port of its own: Ray's HTTP proxies listen at the same one everywhere")
    with ray_at(address, settings):
        import ray
        from ray import serve

        from m3.serving.deployment import build, check_room

        if address is None:  # a cluster may grow
            check_room(fleet, ray.cluster_resources())
        place = "HeadOnly" if address is None else "EveryNode"
        serve.start(proxy_location=place, http_options={"host": settings.host, "port": settings.port})
        try:
            serve.run(build(fleet, settings), name=APPLICATION)
            ended = threading.Event()  # before this both signals end the process, and Ray with it
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: ended.set())
            logger.info("serving at http://%s:%d", settings.host, settings.port)
            ended.wait()
        finally:
            serve.delete(APPLICATION)  # waits for what was accepted
            if address is None:  # on a cluster of others there may be others' applications
                serve.shutdown()
    return 0


@contextmanager
def ray_at(address: str | None, settings: Settings) -> Iterator[None]:
    """Ray, and its end."""
    if address is None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if os.environ["RAY_AUTH_MODE"] == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # reads these once

    if address is None:
        # bodies of requests are what is kept in its store, beside small change
        ray.init(
            include_dashboard=False, object_store_memory=2 * settings.queue.held_bytes, logging_level=logging.WARNING
        )
    else:
        ray.init(address, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
