"""The log: lines for people, or one JSON object a line for machines."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter


def configure(*, json: bool) -> None:
    """Log to standard error from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    if json:
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                datefmt="%Y-%m-%dT%H:%M:%S%z",
            )
        )
    else:
        handler.setFormatter(logging.Formatter("{asctime} {levelname:<7} {message}", style="{"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
