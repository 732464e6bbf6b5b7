"""Several models in one process, behind one address. In: `Fleet`. Out: an app."""

import asyncio
from dataclasses import replace

from fastapi import FastAPI
from prometheus_client import generate_latest

from m3.serving.app import create_app
from m3.serving.cluster.config import Fleet, Served, load_served
from m3.serving.cluster.router import Model, Pages, RouterMetrics, create_router
from m3.serving.engine.engine import Engine
from m3.serving.settings import Settings, behind


def create_local(fleet: Fleet, settings: Settings) -> FastAPI:
    """Loads all models.

    An engine each, so each has the whole of `settings.queue` and `settings.cache_bytes`.

    Raises:
        ValueError: more than one replica is asked for; a model cannot be loaded.
    """
    if fleet.needs_ray:
        raise ValueError(
            "one process serves one replica of each model; more of them need Ray "
            "(m3/serving/cluster/ray_runtime.py)"
        )
    engines = {model.id: _engine(model, settings) for model in fleet.models}

    async def close() -> None:
        await asyncio.gather(*(asyncio.to_thread(engine.close) for engine in engines.values()))

    models = {
        model_name: _model(model_name, engine, settings) for model_name, engine in engines.items()
    }
    return create_router(models, settings, RouterMetrics(), close)


def _engine(model: Served, settings: Settings) -> Engine:
    return Engine(*load_served(model), behind(settings, model.id))


def _model(name: str, engine: Engine, settings: Settings) -> Model:
    async def pages() -> Pages:
        return [("0", generate_latest(engine.metrics.registry).decode())]

    async def is_well() -> bool:
        return engine.is_alive

    own_settings = replace(behind(settings, name), ui=settings.ui)  # the page's token grids
    return Model(create_app(engine, own_settings), pages, is_well)
