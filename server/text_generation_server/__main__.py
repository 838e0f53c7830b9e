"""text-generation-server: serve one rank of a model, or get a model's weights. Parses, then hands over."""

import argparse
import asyncio
import gc
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from text_generation_proto import flags, logs
from text_generation_proto.courtesy import be_courteous, be_ordinary
from text_generation_server.config import ShardConfig

DESCRIPTION = """One shard of a large language model: it holds a slice of the weights and computes steps for a router or for
a gRPC client."""
SERVE = """Serve one rank of a model over gRPC on a Unix socket. The launcher starts one such process for each GPU; to try
it alone, `serve models/tiny-bloom` is enough. Several ranks find each other by --rank, --world-size and
--master-addr/-port."""
DOWNLOAD = """Get a model's weights from the hub and print their folder. Checkpoints that have only .bin files are converted
to safetensors once, and so are GGUF files, into a folder of their own. A local folder is used in place. HF_TOKEN opens
private models, HF_HUB_OFFLINE=1 uses the cache only."""

MODELS = """Print the table of model types that were served and compared with transformers' own answers, as Markdown."""


def main() -> None:
    parser = argparse.ArgumentParser("text-generation-server", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve one rank of a model", description=SERVE)
    flags.add_flags(ShardConfig, serve)
    download = commands.add_parser("download-weights", help="get a model's weights", description=DOWNLOAD)
    download.add_argument("model_id", metavar="MODEL_ID", help="name on the hub, a local folder, or a GGUF file")
    download.add_argument("--revision", help="branch, tag or commit; the default is the main branch")
    download.add_argument("--trust-remote-code", action="store_true", help="get the model's Python files too")
    download.add_argument("--without-weights", action="store_true", help="get config and tokenizer only, for --random-weights")
    commands.add_parser("models", help="print which model types are served, and how they were checked", description=MODELS)
    namespace = parser.parse_args()
    try:
        if namespace.command == "serve":
            code = _serve(flags.from_namespace(ShardConfig, serve, namespace))
        elif namespace.command == "models":
            code = _print_models()
        else:
            code = _download(namespace)
    except KeyboardInterrupt:
        code = 0
    except Exception:
        logging.getLogger(__name__).exception("Error: unexpected")
        code = 1
    # Threads of torch and gRPC may still wait for ranks that are gone; there is nothing left to clean up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(config: ShardConfig) -> int:
    logs.configure(f"shard rank={config.rank}" if config.world_size > 1 else "shard", config.json_output)
    # Before torch is loaded: OpenMP's threads spin for a moment when they wait for each other. Asleep at once, they take
    # nearly twice as long for a small step; spinning on, they stand in the way of a router that wants their core.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    from text_generation_server.download import download_weights
    from text_generation_server.errors import ShardError
    from text_generation_server.runner import load_runner
    from text_generation_server.service import serve

    try:
        # The steps' thread loads too: each thread that computes gets OpenMP threads of its own, and more of them than cores
        # would wait for each other asleep whatever was asked for.
        be_courteous()
        device_thread = ThreadPoolExecutor(1, "device", initializer=be_ordinary)
        source = config.model_id, config.revision, config.trust_remote_code, not config.random_weights
        folder = device_thread.submit(download_weights, *source).result()
        runner = device_thread.submit(load_runner, config, folder).result()
        gc.collect()
        gc.freeze()  # what is here by now stays: no collection in the middle of a step has to look through it
        return asyncio.run(serve(config, runner, device_thread))
    except ShardError as error:
        logging.getLogger(__name__).error("Error: %s", error)
        return 1


def _download(namespace: argparse.Namespace) -> int:
    logs.configure("download", json_output=False)
    from text_generation_server.download import download_weights
    from text_generation_server.errors import ShardError

    try:
        with_code, with_weights = namespace.trust_remote_code, not namespace.without_weights
        print(download_weights(namespace.model_id, namespace.revision, with_code, with_weights))
        return 0
    except ShardError as error:
        logging.getLogger(__name__).error("Error: %s", error)
        return 1


def _print_models() -> int:
    from text_generation_server.model_table import ModelTable

    print(ModelTable.read().markdown())
    return 0


if __name__ == "__main__":
    main()
