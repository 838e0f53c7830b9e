"""`text-generation-launcher`: the one command that starts everything.

In: a command line. Out: a running server, until SIGINT or SIGTERM. Exit status: 0 then, 1 when it could not start or go
on, 2 when the command line is wrong.
"""

import argparse
import os
import signal
import sys

from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.devices import visible_devices
from text_generation_launcher.launch import Commands, Launch
from text_generation_proto import flags, logs

DESCRIPTION = """\
Serve a large language model over HTTP.

Gets the model's weights, starts one shard process per GPU (one on a machine without GPUs) and a router that speaks HTTP
with the world, watches them, starts again what dies, and stops them all when you press Ctrl-C.

  text-generation-launcher --model-id models/tiny-bloom                    a folder on this machine
  text-generation-launcher --model-id bigscience/bloom --num-shard 8       176 billion parameters on 8 GPUs

and then, from anywhere:

  curl 127.0.0.1:3000/generate -X POST -H 'Content-Type: application/json' \\
       -d '{"inputs": "Testing API", "parameters": {"max_new_tokens": 9}}'

/health answers 503 until the weights are loaded and 200 from then on.
"""
EPILOG = "Every flag is also the environment variable named beside it; the command line wins."


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="text-generation-launcher",
        usage="%(prog)s [--model-id MODEL] [--num-shard N] [--port PORT] ... (--help explains every flag)",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config = flags.parse(LauncherConfig, parser)
    devices = visible_devices(os.environ)
    try:
        world_size = config.world_size(len(devices))
    except ValueError as error:
        parser.error(str(error))
    logs.configure("launcher", config.json_output)
    sys.exit(run_until_signal(Launch(config, world_size, devices, os.environ, Commands())))


def run_until_signal(launch: Launch) -> int:
    """SIGINT or SIGTERM stops it in order; a second one at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: launch.request_stop())
    return launch.run()


if __name__ == "__main__":
    main()
