"""How every process of this server logs: one line an event, as text or as JSON, so that one reader can follow them all.

In: the name a process goes by ("router", "shard rank=0"). Out: a configured root logger on standard error.
Standard library only.
"""

import json
import logging
import sys
import time


def configure(process: str, json_output: bool, level: int = logging.INFO) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if json_output else _text_formatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)


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
