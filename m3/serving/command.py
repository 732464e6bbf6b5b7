"""`m3 serve`: a checkpoint behind OpenAI's API.

m3 serve --model-path playground/m3-tiny --port 8000

Any setting of m3/serving/settings.py can follow as key=value, or stand in a YAML file given with --config:

m3 serve --model-path playground/m3-tiny limits.images=4 queue.running=8 allowed_hosts='[images.example.org]'
"""

import argparse
import dataclasses
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from m3 import config
from m3.inference.loading import DTYPES, load
from m3.inference.quantisation import QUANTISATIONS
from m3.packages import require
from m3.serving.settings import Settings

logger = logging.getLogger(__name__)
KEY_VARIABLE = "M3_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="m3 serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True, help="folder (or hub id) of an M3 checkpoint")
    parser.add_argument("--host", help="address to listen at; default 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, help="default 8000; 0 for a free one")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"clients must send what it holds; or set {KEY_VARIABLE}"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, over those of the file")
    weights = parser.add_argument_group("weights")
    weights.add_argument("--device", help="cpu, cuda, cuda:1, mps, npu, xpu; default: the accelerator there is")
    weights.add_argument("--device-map", help="instead: `auto` spreads the layers over all devices")
    weights.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    weights.add_argument("--quantise", choices=tuple(QUANTISATIONS))
    weights.add_argument("--lora", metavar="DIR", help="a LoRA adapter")
    weights.add_argument("--merge", action="store_true", help="add the adapter into the weights")
    weights.add_argument("--attention", help="as transformers names it, such as flash_attention_2")
    return parser.parse_intermixed_args(list(argv))


def main(argv: list[str]) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what was accepted. 0, or a `ValueError` for a user's mistake."""
    arguments = parse(argv)
    settings = read_settings(arguments)
    require("fastapi")
    from m3.serving.api import create_app
    from m3.serving.engine import Engine
    from m3.serving.server import make_server

    warn(settings)
    model, processor = load(
        arguments.model_path,
        device=arguments.device,
        dtype=arguments.dtype,
        device_map=arguments.device_map,
        quantise=arguments.quantise,
        lora=arguments.lora,
        merge=arguments.merge,
        attention=arguments.attention,
    )
    server = make_server(create_app(Engine(model, processor, settings), settings), settings)
    signal.signal(signal.SIGTERM, _told_to_end)
    server.run()
    return 0


def _told_to_end(*_: object) -> None:
    """uvicorn raises the signal once more when all is finished; what it was told to do is done by then."""


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The file's, then `key=value`, then flags."""
    overrides = list(arguments.settings)
    if arguments.host is not None:
        overrides.append(f"host={arguments.host}")
    if arguments.port is not None:
        overrides.append(f"port={arguments.port}")
    settings = config.load(arguments.config, Settings, overrides)
    name = settings.name or Path(arguments.model_path).resolve().name
    return dataclasses.replace(settings, name=name, api_key=read_key(arguments.api_key_file) or settings.api_key)


def read_key(file: Path | None) -> str | None:
    """From the file, else from the environment. Never from the command line, which every user of the machine can read."""
    if file is None:
        return os.environ.get(KEY_VARIABLE)
    key = file.read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"{file}: the file is empty; expected the API key")
    return key


def warn(settings: Settings) -> None:
    """Where others than this machine may ask."""
    if settings.host not in LOOPBACK and settings.api_key is None:
        logger.warning(
            "warning: listening at %s without an API key: whoever reaches this machine may use the model. Give --api-key-file or "
            "%s, or listen at 127.0.0.1",
            settings.host,
            KEY_VARIABLE,
        )
