"""`text-generation-launcher`: the one command that starts everything.

In: a command line. Out: a running server, until SIGINT or SIGTERM. Exit status: 0 then, 1 when it could not start or go
on, 2 when the command line is wrong.
"""

import argparse
import logging
import os
import signal
import sys

from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.devices import visible_devices
from text_generation_launcher.ignored_flags import HELP_GROUP, IgnoredFlags
from text_generation_launcher.launch import Commands, Launch
from text_generation_launcher.runtime_report import runtime_report
from text_generation_proto import flags, logs

log = logging.getLogger(__name__)

DESCRIPTION = """\
Serve a large language model over HTTP.

Gets the model's weights, starts one shard process per GPU (one on a machine without GPUs) and a router that speaks HTTP
with the world, watches them, starts again what dies, and stops them all when you press Ctrl-C.

  text-generation-launcher --model-id models/tiny-bloom                    a folder on this machine
  text-generation-launcher --model-id bigscience/bloom --num-shard 8       176 billion parameters on 8 GPUs

and then, from anywhere:

  curl 127.0.0.1:3000/generate -X POST -H 'Content-Type: application/json' \\
       -d '{"inputs": "Testing API", "parameters": {"max_new_tokens": 9}}'

The port answers at once: /health says 503 and what is waited for until the weights are loaded, and 200 from then on.
"""
EPILOG = "A flag is also the environment variable named beside it; the command line wins."


def main() -> None:
    parser = build_parser()
    namespace = parser.parse_args()
    config = flags.from_namespace(LauncherConfig, parser, namespace)
    ignored = flags.from_namespace(IgnoredFlags, parser, namespace)
    devices = visible_devices(os.environ)
    try:
        world_size = config.world_size(len(devices))
    except ValueError as error:
        parser.error(str(error))
    logs.configure("launcher", config.json_output)
    for line in ignored.warnings():
        log.warning(line)
    if namespace.env:
        log.info(runtime_report(len(devices)))
    sys.exit(run_until_signal(Launch(config, world_size, devices, os.environ, Commands())))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="text-generation-launcher",
        usage="%(prog)s [--model-id MODEL] [--num-shard N] [--port PORT] ... (--help explains every flag)",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-e", "--env", action="store_true", help="Log a line with versions and the number of GPUs.")
    flags.add_flags(LauncherConfig, parser)
    flags.add_flags(IgnoredFlags, parser, HELP_GROUP)
    return parser


def run_until_signal(launch: Launch) -> int:
    """SIGINT or SIGTERM stops it in order; a second one at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: launch.request_stop())
    return launch.run()


if __name__ == "__main__":
    main()
