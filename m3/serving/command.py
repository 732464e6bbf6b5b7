"""`m3 serve`: a checkpoint behind OpenAI's API.

m3 serve --model-path playground/m3-tiny --port 8000

Any setting of m3/serving/settings.py can follow as key=value, or stand in a YAML file given with
--config:

m3 serve --model-path playground/m3-tiny limits.images=4 queue.running=8
allowed_hosts='[images.example.org]'

Several models and adapters behind one address (m3/serving/cluster/config.py), and several processes
of each, on Ray:

m3 serve --fleet fleet.yaml
m3 serve --model-path playground/m3-tiny --replicas 2
"""

import argparse
import dataclasses
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from m3 import config
from m3.inference.loading import DTYPES
from m3.inference.quantisation import QUANTISATIONS
from m3.optional import require
from m3.serving.cluster.config import Fleet, Served, load_served
from m3.serving.settings import KEY_VARIABLE, Settings, read_key

logger = logging.getLogger(__name__)
WEIGHTS = ("device", "device_map", "dtype", "quantise", "lora", "merge", "attention")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="m3 serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model_options = parser.add_mutually_exclusive_group(required=True)
    model_options.add_argument("--model-path", help="folder (or hub id) of an M3 checkpoint")
    model_options.add_argument(
        "--fleet",
        type=Path,
        metavar="YAML",
        help="several models and adapters; a request's `model` chooses",
    )
    parser.add_argument(
        "--host", help="address to listen at; default 127.0.0.1: this machine alone"
    )
    parser.add_argument("--port", type=int, help="default 8000; 0 for a free one")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"clients must send what it holds; or set {KEY_VARIABLE}",
    )
    parser.add_argument("--ui", action="store_true", help="a web page at /ui, for people")
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings, over those of the file"
    )
    scale_out = parser.add_argument_group("several processes, on Ray")
    scale_out.add_argument("--replicas", type=int, metavar="N", help="processes of each model")
    scale_out.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="of a Ray cluster, such as `auto`; default: one for this server",
    )
    scale_out.add_argument(
        "--replica-cpus", type=float, metavar="X", help="that a replica is placed by; default 1"
    )
    scale_out.add_argument(
        "--replica-gpus", type=float, metavar="X", help="default: 1 where there is CUDA"
    )
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, npu, xpu; default: the accelerator there is"
    )
    weights.add_argument("--device-map", help="instead: `auto` spreads the layers over all devices")
    weights.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    weights.add_argument("--quantise", choices=tuple(QUANTISATIONS))
    weights.add_argument("--lora", metavar="DIR", help="a LoRA adapter")
    weights.add_argument("--merge", action="store_true", help="add the adapter into the weights")
    weights.add_argument("--attention", help="as transformers names it, such as flash_attention_2")
    return parser.parse_intermixed_args(list(argv))


def main(argv: list[str]) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what was accepted.

    0, or a `ValueError` for a user's mistake.
    """
    arguments = parse(argv)
    settings, fleet = read_settings(arguments), read_fleet(arguments)
    require("fastapi")
    warn(settings)
    on_ray = arguments.ray is not None or arguments.replicas is not None or fleet.needs_ray
    if settings.ui and (on_ray or arguments.fleet is not None):
        raise ValueError(
            "--ui: the page belongs to one model in one process; leave out --fleet, --replicas and "
            "--ray, or start a second "
            "`m3 serve --ui` for it"
        )
    if on_ray:
        require("ray")
        from m3.serving.cluster.ray_runtime import run

        return run(fleet, settings, arguments.ray)
    from m3.serving.app import create_app
    from m3.serving.cluster.local import create_local
    from m3.serving.engine.engine import Engine
    from m3.serving.http.server import make_server

    signal.signal(signal.SIGTERM, _before_it_is_up)
    if arguments.fleet is not None:
        app = create_local(fleet, settings)
    else:
        app = create_app(Engine(*load_served(fleet.models[0]), settings), settings)
    server = make_server(app, settings)
    signal.signal(signal.SIGTERM, _told_to_end)
    server.run()
    return 0


def read_fleet(arguments: argparse.Namespace) -> Fleet:
    """The file's, or the one model that the flags tell of; `--replicas` and its like are for all
    models.
    """
    given_flags = {
        "replicas": arguments.replicas,
        "cpus": arguments.replica_cpus,
        "gpus": arguments.replica_gpus,
    }
    flags = {
        flag_name: flag_value
        for flag_name, flag_value in given_flags.items()
        if flag_value is not None
    }
    if arguments.fleet is not None:
        weight_flags = [
            flag_name
            for flag_name in WEIGHTS
            if vars(arguments)[flag_name] not in (None, False, "auto")
        ]
        if weight_flags:
            raise ValueError(
                f"--{weight_flags[0].replace('_', '-')}: a fleet's file says this for each of its models"
            )
        fleet = config.load(arguments.fleet, Fleet)
        return dataclasses.replace(
            fleet,
            models=tuple(
                dataclasses.replace(served_model, **flags) for served_model in fleet.models
            ),
        )
    weights = {flag_name: vars(arguments)[flag_name] for flag_name in WEIGHTS}
    return Fleet(
        models=(
            Served(
                path=arguments.model_path,
                name=read_settings(arguments).name or "",
                **weights,
                **flags,
            ),
        )
    )


def _before_it_is_up(*_: object) -> None:
    """There is nothing to finish yet; what has begun is put away as the stack unwinds."""
    raise SystemExit(0)


def _told_to_end(*_: object) -> None:
    """uvicorn raises the signal once more when all is finished; what it was told to do is done
    by then.
    """


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The file's, then `key=value`, then flags."""
    overrides = list(arguments.settings)
    if arguments.host is not None:
        overrides.append(f"host={arguments.host}")
    if arguments.port is not None:
        overrides.append(f"port={arguments.port}")
    if arguments.ui:
        overrides.append("ui=true")
    settings = config.load(arguments.config, Settings, overrides)
    server_name = settings.name
    if arguments.model_path is not None:
        server_name = server_name or Path(arguments.model_path).resolve().name
    elif server_name is not None:
        raise ValueError(f"name is {server_name!r}: a fleet's file names each of its models")
    return dataclasses.replace(
        settings, name=server_name, api_key=read_key(arguments.api_key_file) or settings.api_key
    )


def warn(settings: Settings) -> None:
    """Warn of a server that is open to other machines."""
    if settings.host not in LOOPBACK and settings.api_key is None:
        logger.warning(
            "warning: listening at %s without an API key: whoever reaches this machine may use the "
            "model. Give --api-key-file or "
            "%s, or listen at 127.0.0.1",
            settings.host,
            KEY_VARIABLE,
        )
