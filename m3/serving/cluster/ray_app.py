"""Models on Ray Serve: replicas of the engine on any number of machines, and a router in front of
them.

serve run m3.serving.cluster.ray_app:app model_path=playground/m3-tiny replicas=2
serve run m3.serving.cluster.ray_app:app fleet=fleet.yaml server=server.yaml

In: `Fleet` and `Settings`. Out: an application of Ray Serve.

    client -> Ray's HTTP proxy -> Entrance (m3/serving/cluster/router.py, no model)
        -> a Worker with room (m3/serving/engine/engine.py)

Worker and single-process server are the same app (m3/serving/http/api.py); between Entrance and
Worker its messages go through Ray.
"""

import asyncio
import dataclasses
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import generate_latest
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import Message

from m3 import config
from m3.hardware import choose_device
from m3.serving.app import create_app
from m3.serving.cluster.config import Fleet, Served, load_served
from m3.serving.cluster.retry import Ask, NoPlace, ReplicaDied, Retried
from m3.serving.cluster.router import Model, Pages, RouterMetrics, create_router
from m3.serving.engine.engine import Engine
from m3.serving.http.relay import Asked, messages
from m3.serving.settings import Settings, behind, read_key

logger = logging.getLogger(__name__)
HEALTH_SECONDS = 2.0
"""How often Ray looks whether a replica is well; one whose process ended is replaced at the next
look.
"""


class Worker:
    """One replica of one model."""

    def __init__(self, model: Served, settings: Settings) -> None:
        worker_settings = behind(settings, model.id)
        self._engine = Engine(*load_served(model), worker_settings)
        self._app = create_app(self._engine, worker_settings)

    async def ask(self, relayed_request: Asked) -> AsyncGenerator[Message]:
        async for message in messages(self._app, relayed_request):
            yield message

    async def page(self) -> tuple[str, str]:
        """This replica's name, and its metrics."""
        return serve.get_replica_context().replica_tag, generate_latest(
            self._engine.metrics.registry
        ).decode()

    def check_health(self) -> None:
        """Ray asks; a replica that raises is replaced."""
        if not self._engine.is_alive:
            raise RuntimeError("the engine has ended; its log says why")

    def __del__(self) -> None:
        """Ray calls it once the replica has answered all that it had accepted."""
        self._engine.close()


@serve.ingress()
class Entrance:
    """The router.

    Requests for a model go to whichever of its replicas has the shorter queue (Ray's choice of
    two).
    """

    def __init__(
        self, handles: Mapping[str, DeploymentHandle], settings: Settings, retries: int
    ) -> None:
        self._handles, self._settings, self._retries = handles, settings, retries

    def __serve_build_asgi_app__(self) -> FastAPI:
        metrics = RouterMetrics()

        def model(name: str, handle: DeploymentHandle) -> Model:
            ask = asking(handle)
            app = Retried(
                name, ask, self._settings, self._retries, metrics.retried, metrics.interrupted
            )
            return Model(app, lambda: _pages(handle), lambda: _is_well(handle))

        models = {
            model_name: model(model_name, handle) for model_name, handle in self._handles.items()
        }
        return create_router(models, self._settings, metrics, _nothing)


def asking(handle: DeploymentHandle) -> Ask:
    """Asks one replica, in the words of m3/serving/cluster/retry.py."""

    async def ask(relayed_request: Asked) -> AsyncGenerator[Message]:
        answer = handle.options(method_name="ask", stream=True).remote(relayed_request)
        assert isinstance(answer, DeploymentResponseGenerator)  # of a stream
        try:
            async for message in answer:
                yield message
        except (RayActorError, ObjectLostError) as error:
            logger.warning("a replica died with a request: %s", type(error).__name__)
            raise ReplicaDied from error
        except BackPressureError as error:
            raise NoPlace from error
        except (asyncio.CancelledError, GeneratorExit):
            answer.cancel()  # the client left; after an error this would raise it once more
            raise

    return ask


async def _pages(handle: DeploymentHandle) -> Pages:
    return await handle.broadcast("page").results_async(timeout_s=5.0)


async def _is_well(handle: DeploymentHandle) -> bool:
    serve_status = await asyncio.to_thread(serve.status)
    states = (
        serve_status.applications[handle.app_name]
        .deployments[handle.deployment_name]
        .replica_states
    )
    return any(
        replica_state == "RUNNING" and replica_count
        for replica_state, replica_count in states.items()
    )


async def _nothing() -> None:
    """The replicas have lives of their own."""


def build(fleet: Fleet, settings: Settings) -> serve.Application:
    """All models, and the router in front of them."""
    workers = {
        model.id: _deployment(Worker)
        .options(**_options(model_number, model, settings))
        .bind(model, settings)
        for model_number, model in enumerate(fleet.models)
    }
    entrance = _deployment(Entrance).options(
        name="router",
        num_replicas=fleet.routers,
        # bounded by the queues behind it, and by settings.queue.held_bytes
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        ray_actor_options={"num_cpus": 0},
    )
    return entrance.bind(workers, settings, fleet.retries)


def _deployment(kind: type) -> serve.Deployment:
    new_deployment = serve.deployment(kind)
    assert isinstance(
        new_deployment, serve.Deployment
    )  # a class was given, so this is no decorator
    return new_deployment


def check_room(fleet: Fleet, resources: Mapping[str, float]) -> None:
    """Replicas that nobody has room for would be waited for without end."""
    for resource_name, needed_by in (("CPU", lambda model: model.cpus), ("GPU", _gpus)):
        needed_total = sum(model.replicas * needed_by(model) for model in fleet.models)
        if needed_total > resources.get(resource_name, 0.0):
            flag = f"--replica-{resource_name.lower()}s, or {resource_name.lower()}s in the fleet's file; it may be a fraction"
            raise ValueError(
                f"the replicas are to have {needed_total:g} {resource_name}s, and there are "
                f"{resources.get(resource_name, 0.0):g}: ask for fewer "
                f"replicas, or less for each ({flag})"
            )


def _gpus(model: Served) -> float:
    return (
        model.gpus if model.gpus is not None else float(choose_device(model.device).type == "cuda")
    )


def _options(number: int, model: Served, settings: Settings) -> dict[str, Any]:
    """Ray's, of one model's replicas."""
    request_places = settings.queue.running + settings.queue.waiting  # of an engine
    deployment_options: dict[str, Any] = {
        "name": f"{number}-{re.sub(r'[^A-Za-z0-9_.-]', '-', model.id)}",
        "max_ongoing_requests": request_places,
        "max_queued_requests": request_places,  # a burst passes through here even where there is room
        "health_check_period_s": HEALTH_SECONDS,
        "graceful_shutdown_timeout_s": settings.shutdown_seconds,
        "logging_config": {"enable_access_log": False},  # the router has one
        "ray_actor_options": {"num_cpus": model.cpus, "num_gpus": _gpus(model)},
    }
    if model.max_replicas is None:
        return {**deployment_options, "num_replicas": model.replicas}
    scaling = AutoscalingConfig(
        min_replicas=model.replicas,
        max_replicas=model.max_replicas,
        target_ongoing_requests=model.target_requests or settings.queue.running,
        upscale_delay_s=model.upscale_seconds,
        downscale_delay_s=model.downscale_seconds,
    )
    return {**deployment_options, "autoscaling_config": scaling}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of `serve run`. `fleet`, `server`: a YAML file's name, or its content."""

    model_path: str | None = None
    replicas: int = 1
    fleet: str | Fleet | None = None
    server: str | Settings | None = None

    def __post_init__(self) -> None:
        if (self.model_path is None) == (self.fleet is None):
            raise ValueError("give model_path=FOLDER or fleet=FILE, and not both")


def app(arguments: dict[str, Any]) -> serve.Application:
    """For `serve run` and Serve's config files. Errors name the argument."""
    # `serve run` gives every value as text
    setting_texts = [
        f"{setting_name}={setting_value}"
        for setting_name, setting_value in arguments.items()
        if isinstance(setting_value, str)
    ]
    given_settings = (
        config.load(None, Arguments, setting_texts)
        if len(setting_texts) == len(arguments)
        else config.decode(arguments, Arguments)
    )
    server = (
        config.load(Path(given_settings.server), Settings)
        if isinstance(given_settings.server, str)
        else given_settings.server or Settings()
    )
    server = dataclasses.replace(server, api_key=server.api_key or read_key(None))
    if isinstance(given_settings.fleet, Fleet):
        return build(given_settings.fleet, server)
    if given_settings.fleet is not None:
        return build(config.load(Path(given_settings.fleet), Fleet), server)
    assert given_settings.model_path is not None
    return build(
        Fleet(
            models=(
                Served(
                    path=given_settings.model_path,
                    name=server.name or "",
                    replicas=given_settings.replicas,
                ),
            )
        ),
        server,
    )
