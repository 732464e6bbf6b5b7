"""`m3 serve --replicas N`: Ray on this machine, or a cluster that runs already, and the models on
it.

In: `Fleet` and `Settings`. Out: nothing until SIGTERM or SIGINT; then all of it is taken down.

Ray on this machine is started for this server alone, and ends with it: without a dashboard, without
reports to Ray's makers, and closed by a token to whoever else reaches its ports (Ray listens at all
addresses of the machine, and who may speak to it may run code there).
"""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from m3.serving.cluster.config import Fleet
from m3.serving.settings import Settings

logger = logging.getLogger(__name__)
APPLICATION = "m3"
LOOK_SECONDS = 0.2
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # 5 is too short for a machine that loads models meanwhile
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",  # Ray's 15 lets replicas starve beside whatever else runs
}
"""Of Ray on this machine, where it is not set."""


def run(fleet: Fleet, settings: Settings, address: str | None = None) -> int:
    """Serves.

    `address`: of a Ray cluster, such as `auto`; None: starts one here. Told to end before it is up,
    it ends as well.

    Raises:
        ValueError: port 0; the replicas are to have more CPUs or GPUs than this machine has; a
            model cannot be loaded.
    """
    if settings.port == 0:
        raise ValueError(
            "port is 0; expected a port of its own: Ray's HTTP proxies listen at the "
            "same one everywhere"
        )
    ended = threading.Event()
    catch(ended)
    with ray_at(address, settings):
        # Ray has put handlers of its own in their place, which end the process as if it had failed
        catch(ended)
        if not ended.is_set():
            _serve(fleet, settings, address, ended)
    return 0


def catch(ended: threading.Event) -> None:
    """SIGTERM and SIGINT set `ended`, and do nothing else."""
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: ended.set())


def _serve(fleet: Fleet, settings: Settings, address: str | None, ended: threading.Event) -> None:
    import ray
    from ray import serve

    from m3.serving.cluster.ray_app import build, check_room

    if address is None:  # a cluster may grow
        check_room(fleet, ray.cluster_resources())
    place = "HeadOnly" if address is None else "EveryNode"
    serve.start(proxy_location=place, http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run_many(
            [serve.RunTarget(build(fleet, settings), APPLICATION)],
            wait_for_applications_running=False,
        )
        if _is_up(ended):
            logger.info("serving at http://%s:%d", settings.host, settings.port)
            ended.wait()
    finally:
        serve.delete(APPLICATION)  # waits for what was accepted
        if address is None:  # on a cluster of others there may be others' applications
            serve.shutdown()


def _is_up(ended: threading.Event) -> bool:
    """Waits until all replicas are there. False where the server is told to end before.

    Raises:
        ValueError: a replica cannot be made, in Ray's words.
    """
    from ray import serve

    while not ended.wait(LOOK_SECONDS):
        application_state = serve.status().applications[APPLICATION]
        if application_state.status == "RUNNING":
            return True
        if application_state.status == "DEPLOY_FAILED":
            raise ValueError(f"the replicas could not be started: {application_state.message}")
    return False


@contextmanager
def ray_at(address: str | None, settings: Settings) -> Iterator[None]:
    """Ray, and its end."""
    if address is None:
        for variable_name, variable_value in ENVIRONMENT.items():
            os.environ.setdefault(variable_name, variable_value)
        if os.environ["RAY_AUTH_MODE"] == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # reads these once

    # on a thread, as in the main one Ray would take the signals for itself (in a warning it says
    # so); the thread stays until Ray has ended, as the kernel ends Ray's processes with it
    with ThreadPoolExecutor(1) as starter_pool:
        if address is None:
            # bodies of requests are what is kept in its store, beside small change
            store = 2 * settings.queue.held_bytes
            begun = starter_pool.submit(
                ray.init,
                include_dashboard=False,
                object_store_memory=store,
                logging_level=logging.ERROR,
            )
        else:
            begun = starter_pool.submit(ray.init, address, logging_level=logging.ERROR)
        begun.result()
        logging.getLogger("ray").setLevel(logging.WARNING)
        try:
            yield
        finally:
            ray.shutdown()
