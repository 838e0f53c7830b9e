"""IgnoredFlags: what the original server's launcher has a flag for and this one has not.

In: a command line and the environment of before. Out: a line for each flag in them that says why it does nothing here.
Values are not looked at, and nothing but these lines depends on them.
"""

import dataclasses
from typing import Any

from text_generation_proto.flags import flag

HELP_GROUP = "accepted for existing command lines, without effect"


def _ignored(why: str) -> Any:
    return flag(None, help=why)


@dataclasses.dataclass(frozen=True, slots=True)
class IgnoredFlags:
    waiting_served_ratio: str | None = _ignored(
        "Prompts join the running batch at every step, so that there is no moment to choose."
    )
    max_batch_total_tokens: str | None = _ignored("What all sequences may hold follows from memory, see --kv-cache-gib.")
    max_waiting_tokens: str | None = _ignored(
        "Prompts join the running batch at every step, so that there is nothing to wait for."
    )
    prometheus_port: str | None = _ignored("/metrics is on the port that everything else is on, see --port.")
    weights_cache_override: str | None = _ignored("--model-id takes the folder that has the weights.")
    disable_custom_kernels: bool | None = _ignored("Kernels of our own run where they can, and PyTorch's elsewhere.")
    rope_scaling: str | None = _ignored("What a checkpoint's config says of its rotary positions holds.")
    rope_factor: str | None = _ignored("What a checkpoint's config says of its rotary positions holds.")
    otlp_endpoint: str | None = _ignored("No traces are sent; the log has a line with the times of each request.")
    otlp_service_name: str | None = _ignored("No traces are sent that could carry a name.")
    ngrok: bool | None = _ignored("No tunnel is opened; ngrok's own client can be pointed at --port.")
    ngrok_authtoken: str | None = _ignored("No tunnel is opened.")
    ngrok_edge: str | None = _ignored("No tunnel is opened.")
    disable_grammar_support: bool | None = _ignored("There are no grammars yet to disable.")
    lora_adapters: str | None = _ignored("Adapters are not served yet; a request that names one is refused.")
    usage_stats: str | None = _ignored("Nothing is ever sent.")
    enable_prefill_logprobs: bool | None = _ignored("They need not be enabled: a request that asks for them gets them.")

    def warnings(self) -> list[str]:
        """None for a switch that is off. Never a value: ngrok's token is a secret."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) not in (None, False)]
        return [f"--{field.name.replace('_', '-')} has no effect: {field.metadata['help']}" for field in fields]
