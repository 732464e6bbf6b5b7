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
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3 import config
from m3.command_line import CommandLine
from m3.inference.command import NUMBER_FORMATS, QUANTISERS
from m3.optional import require
from m3.serving.settings import KEY_VARIABLE, Settings, read_key

if TYPE_CHECKING:
    from m3.serving.cluster.config import Fleet

logger = logging.getLogger(__name__)
WEIGHTS = ("device", "device_map", "dtype", "quantise", "lora", "merge", "attention")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Command line of `m3 serve`, one field per option; `settings` are the `key=value` words.

    Either `model_path` or `fleet` is given. None: left to the settings, or to the fleet.
    """

    model_path: str | None
    fleet: Path | None
    host: str | None
    port: int | None
    api_key_file: Path | None
    ui: bool
    config: Path | None
    settings: Sequence[str]
    replicas: int | None
    ray: str | None
    replica_cpus: float | None
    replica_gpus: float | None
    device: str | None
    device_map: str | None
    dtype: str
    quantise: str | None
    lora: str | None
    merge: bool
    attention: str | None


def parse_options(argv: Sequence[str]) -> ServeOptions:
    """Read the command line; no file that it names is opened yet."""
    parser = CommandLine(
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
    _add_weights(parser)
    return ServeOptions(**vars(parser.parse_intermixed_args(list(argv))))


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the options of the weights: device, type, quantisation, adapter."""
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, npu, xpu; default: the accelerator there is"
    )
    weights.add_argument("--device-map", help="instead: `auto` spreads the layers over all devices")
    weights.add_argument("--dtype", default="auto", choices=("auto", *NUMBER_FORMATS))
    weights.add_argument("--quantise", choices=tuple(QUANTISERS))
    weights.add_argument("--lora", metavar="DIR", help="a LoRA adapter")
    weights.add_argument("--merge", action="store_true", help="add the adapter into the weights")
    weights.add_argument("--attention", help="as transformers names it, such as flash_attention_2")


def main(argv: list[str]) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what was accepted.

    0, or a `ValueError` for a user's mistake.
    """
    options = parse_options(argv)
    settings = read_settings(options)
    fleet = read_fleet(options, settings.name)
    require("fastapi")
    check_port(settings.host, settings.port)
    warn(settings)
    on_ray = options.ray is not None or options.replicas is not None or fleet.needs_ray
    if settings.ui and on_ray:
        raise ValueError(
            "--ui: the page belongs to one process; leave out --replicas and --ray (in the fleet's "
            "file too), or start a second `m3 serve --ui` for it"
        )
    if on_ray:
        require("ray")
        from m3.serving.cluster.ray_runtime import run

        return run(fleet, settings, options.ray)
    from m3.serving.app import create_app
    from m3.serving.cluster.config import load_served
    from m3.serving.cluster.local import create_local
    from m3.serving.engine.engine import Engine
    from m3.serving.http.server import make_server

    signal.signal(signal.SIGTERM, _before_it_is_up)
    if options.fleet is not None:
        app = create_local(fleet, settings)
    else:
        app = create_app(Engine(*load_served(fleet.models[0]), settings), settings)
    server = make_server(app, settings)
    signal.signal(signal.SIGTERM, _told_to_end)
    server.run()
    return 0


def read_fleet(options: ServeOptions, name: str | None) -> "Fleet":
    """The file's, or the one model that the flags tell of, called `name`; `--replicas` and its like
    are for all models.
    """
    # torch is imported once the command line is known to be good
    from m3.serving.cluster.config import Fleet, Served

    given_flags = {
        "replicas": options.replicas,
        "cpus": options.replica_cpus,
        "gpus": options.replica_gpus,
    }
    flags = {
        flag_name: flag_value
        for flag_name, flag_value in given_flags.items()
        if flag_value is not None
    }
    if options.fleet is not None:
        weight_flags = [
            flag_name
            for flag_name in WEIGHTS
            if vars(options)[flag_name] not in (None, False, "auto")
        ]
        if weight_flags:
            raise ValueError(
                f"--{weight_flags[0].replace('_', '-')}: a fleet's file says this for each of its "
                "models"
            )
        fleet = config.load(options.fleet, Fleet)
        return dataclasses.replace(
            fleet,
            models=tuple(
                dataclasses.replace(served_model, **flags) for served_model in fleet.models
            ),
        )
    assert options.model_path is not None  # the parser makes sure of one of them
    weights = {flag_name: vars(options)[flag_name] for flag_name in WEIGHTS}
    return Fleet(models=(Served(path=options.model_path, name=name or "", **weights, **flags),))


def check_port(host: str, port: int) -> None:
    """A `ValueError` for an address that cannot be listened at, before a model is loaded for it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}. Another server may "
            "be there: end it, or give another --port (0: any that is free)"
        ) from error


def _before_it_is_up(*_: object) -> None:
    """There is nothing to finish yet; what has begun is put away as the stack unwinds."""
    raise SystemExit(0)


def _told_to_end(*_: object) -> None:
    """uvicorn raises the signal once more when all is finished; what it was told to do is done
    by then.
    """


def read_settings(options: ServeOptions) -> Settings:
    """The file's, then `key=value`, then flags."""
    overrides = list(options.settings)
    if options.host is not None:
        overrides.append(f"host={options.host}")
    if options.port is not None:
        overrides.append(f"port={options.port}")
    if options.ui:
        overrides.append("ui=true")
    settings = config.load(options.config, Settings, overrides)
    server_name = settings.name
    if options.model_path is not None:
        server_name = server_name or model_name(Path(options.model_path))
    elif server_name is not None:
        raise ValueError(f"name is {server_name!r}: a fleet's file names each of its models")
    return dataclasses.replace(
        settings, name=server_name, api_key=read_key(options.api_key_file) or settings.api_key
    )


def model_name(path: Path) -> str:
    """The end of a checkpoint's path; `runs/mine/checkpoints/final`, as training leaves it, is `mine`,
    in a sweep too.
    """
    names = [part for part in path.resolve().parts if part not in ("checkpoints", "final", "/")]
    return names[-1] if names else path.resolve().name


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
