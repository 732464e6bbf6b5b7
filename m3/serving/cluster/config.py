"""Several models and adapters behind one address: which, and on what.

In: a YAML file (m3/config.py), such as

    models:
    - {name: m3, path: checkpoints/m3-vicuna-7b, replicas: 2, max_replicas: 4}
    - {name: m3-charts, path: checkpoints/m3-vicuna-7b, lora: runs/charts/final}

Out: `Fleet`. A request's `model` chooses by name.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from m3.inference.loading import load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model, and how many processes serve it.

    The first eight fields are those of `m3.inference.load`.
    """

    path: str
    lora: str | None = None
    merge: bool = False
    device: str | None = None
    device_map: str | None = None
    dtype: str = "auto"
    quantise: str | None = None
    attention: str | None = None
    name: str = ""
    """In the API; empty: the name of the adapter's folder, else of the model's."""
    replicas: int = 1
    """Processes, each with the whole model; one process without Ray has one of each."""
    max_replicas: int | None = None
    """Ray adds replicas up to so many under load, and takes them away to `replicas`; None: as
    many as `replicas`.
    """
    target_requests: float | None = None
    """Requests per replica that this scaling aims at; None: as many as its batch has rows."""
    upscale_seconds: float = 30.0
    """How long there must be more than that before a replica is added."""
    downscale_seconds: float = 600.0
    cpus: float = 1.0
    """Per replica, and only for placing it: a process is not held to it."""
    gpus: float | None = None
    """Per replica; None: one where the machine that deploys has CUDA.

    Ray hides all other GPUs from the replica.
    """

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas is {self.replicas}; expected 1 or more")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, below replicas ({self.replicas})"
            )
        for setting_name, setting_value in {
            "target_requests": self.target_requests,
            "cpus": self.cpus,
            "gpus": self.gpus,
        }.items():
            if setting_value is not None and (
                setting_value < 0 or (setting_name == "target_requests" and setting_value == 0)
            ):
                raise ValueError(f"{setting_name} is {setting_value}; expected more than 0")

    @property
    def id(self) -> str:
        """Its name in the API."""
        return self.name or Path(self.lora or self.path).resolve().name


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All models of one address."""

    models: tuple[Served, ...]
    routers: int = 1
    """Processes in front of Ray's replicas; they hold no model."""
    retries: int = 2
    """How many replicas may die with a request in their hands before it is given up."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty; expected one model or more")
        twice = [
            model_name
            for model_name, model_count in Counter(model.id for model in self.models).items()
            if model_count > 1
        ]
        if twice:
            raise ValueError(
                f"two models have the name {twice[0]!r}: give each a `name` of its own"
            )
        if self.routers < 1 or self.retries < 0:
            raise ValueError(
                f"routers is {self.routers}, retries {self.retries}; expected 1 or "
                "more, and 0 or more"
            )

    @property
    def needs_ray(self) -> bool:
        """Tell whether some model has more than one process."""
        return any(max(model.replicas, model.max_replicas or 1) > 1 for model in self.models)


def load_served(model: Served) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """Errors as in `m3.inference.load`."""
    return load(
        model.path,
        device=model.device,
        dtype=model.dtype,
        device_map=model.device_map,
        quantise=model.quantise,
        lora=model.lora,
        merge=model.merge,
        attention=model.attention,
    )
