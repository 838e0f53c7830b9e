"""How every process of this server logs: one line an event, as text or as JSON, so that one reader can follow them all.

In: the name a process goes by ("router", "shard rank=0"), and LOG_LEVEL. Out: a configured root logger on standard error.
Standard library only.
"""

import json
import logging
import os
import sys
import time

LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}


def configure(process: str, json_output: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if json_output else _text_formatter(process))
    logging.basicConfig(level=read_level(os.environ.get("LOG_LEVEL", "")), handlers=[handler], force=True)


def read_level(text: str) -> int:
    """The first plain level of a filter such as `info,text_generation_router=debug`, which the original server takes."""
    words = (word.strip().lower() for word in text.split(","))
    return next((LEVELS[word] for word in words if word in LEVELS), logging.INFO)


def _text_formatter(process: str) -> logging.Formatter:
    formatter = logging.Formatter(f"%(asctime)s %(levelname)s {process}: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self.process,
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
