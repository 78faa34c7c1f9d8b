"""How log lines look: text for people, or one JSON object per line; ours and uvicorn's alike, to standard error."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

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
    """`2026-11-24T03:08:41.123Z INFO    tracker.api  message`; further lines, as of a traceback, are indented."""

    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join((record.getMessage().rstrip("\n"), *_trace(self, record))).translate(CONTROL_CHARACTERS)
        return f"{_time(record)} {record.levelname:<7} {_logger(record)}  {text}"


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "message": record.getMessage(),
        }
        if trace := _trace(self, record):
            entry["exception"] = "\n".join(trace)
        return json.dumps(entry)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _logger(record: logging.LogRecord) -> str:
    # uvicorn logs everything there, good news too: "INFO uvicorn.error" only startles.
    return "uvicorn" if record.name == "uvicorn.error" else record.name


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    return [*parts, formatter.formatStack(record.stack_info)] if record.stack_info else parts
