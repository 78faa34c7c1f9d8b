"""How log lines look: text for people, or one JSON object per line; ours and uvicorn's alike, to standard error."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from tracker.settings import Settings

# A message may quote what a client sent: that must neither look like a line of ours nor move the cursor.
CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {ord("\n"): "\n    "}


def log_config(settings: Settings) -> dict[str, Any]:
    """What `logging.config.dictConfig` and uvicorn's `log_config` take; picklable, so that workers get it too."""
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": settings.log_level.upper(), "handlers": ["stderr"]},
    }


class TextFormatter(logging.Formatter):
    """`2026-11-24T03:08:41.123Z INFO    tracker.api  message`; further lines, as of a traceback, are indented.

    A record with `lines` (see `tracker.api.access`) has one for each of them instead.
    """

    def format(self, record: logging.LogRecord) -> str:
        logger = _logger(record)
        if lines := getattr(record, "lines", None):
            return "\n".join(
                f"{_time(line.created)} {logging.getLevelName(line.level):<7} {logger}  "
                + line.message.translate(CONTROL_CHARACTERS)
                for line in lines
            )
        text = "\n".join((record.getMessage().rstrip("\n"), *_trace(self, record))).translate(CONTROL_CHARACTERS)
        return f"{_time(record.created)} {record.levelname:<7} {logger}  {text}"


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, further fields, and exception if there is one.

    `extra={"fields": {...}}` makes further fields. A record with `lines` has an object for each, with its `fields`.
    """

    def format(self, record: logging.LogRecord) -> str:
        logger = _logger(record)
        if lines := getattr(record, "lines", None):
            return "\n".join(
                to_json(
                    _entry(line.created, logging.getLevelName(line.level), logger, line.message, line.fields)
                ).decode()
                for line in lines
            )
        fields = getattr(record, "fields", {})
        entry = _entry(record.created, record.levelname, logger, record.getMessage(), fields)
        if trace := _trace(self, record):
            entry["exception"] = "\n".join(trace)
        return json.dumps(entry)


def _entry(created: float, level: str, logger: str, message: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": _time(created), "level": level.lower(), "logger": logger, "message": message, **fields}


def _time(created: float) -> str:
    seconds, milliseconds = divmod(int(created * 1000), 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _logger(record: logging.LogRecord) -> str:
    # uvicorn logs everything there, good news too: "INFO uvicorn.error" only startles.
    return "uvicorn" if record.name == "uvicorn.error" else record.name


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    return [*parts, formatter.formatStack(record.stack_info)] if record.stack_info else parts
