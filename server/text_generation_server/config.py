"""ShardConfig: everything one rank of the shard server can be told, with its flags and environment variables.

In: a command line and, as torch.distributed has it, RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Out: one frozen object.
Standard library only, so that the launcher can build it too.
"""

import dataclasses

from text_generation_proto.flags import flag

QUANTIZE_KINDS = ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "int8-dynamic")
DTYPES = ("float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "fp8_e4m3fn")


@dataclasses.dataclass(frozen=True, slots=True)
class ShardConfig:
    model_id: str = flag(
        positional=True, help="A model's folder, a GGUF file, or a model's name on the hub (download-weights gets it)."
    )
    revision: str | None = flag(None, help="Branch, tag or commit of a hub model. Unset: main.")
    shard_uds_path: str = flag(
        "/tmp/text-generation-server",
        help="Prefix of the Unix sockets; rank N listens on PREFIX-N. Two servers on one machine need two prefixes.",
    )
    quantize: str | None = flag(
        None,
        choices=QUANTIZE_KINDS,
        help="Store the layers' weights in 8 bits (bitsandbytes: LLM.int8) or 4 (-nf4, -fp4): less memory, a little less "
        "exact. int8-dynamic, on CPUs only: weights, head and inputs in 8 bits, the fastest and less exact. Unset: the "
        "checkpoint's weights in --dtype.",
    )
    trust_remote_code: bool = flag(
        False,
        help="Run the Python files of a model whose config.json names some (auto_map). They can do whatever this process "
        "may: read files, open connections, change anything. Only for models whose code you have read, at a --revision that "
        "is a commit. Unset: such models are refused.",
    )
    random_weights: bool = flag(
        False,
        help="Draw the weights at random instead of reading them: how fast a model would be and how much memory it would take, "
        "before it is downloaded. Needs its config.json and tokenizer only; answers are noise. Of BLOOM, Llama, Mistral "
        "and Qwen2.",
    )
    dtype: str | None = flag(
        None,
        choices=DTYPES,
        help="Type of weights and arithmetic. Unset: bfloat16 on CUDA (float16 on cards without it) "
        "and on CPUs with bfloat16 units, else float32. Of BLOOM and Llama on CPUs the matrices are in it, "
        "and in bfloat16 keys and values; all else is float32.",
    )
    block_size: int = flag(
        16,
        help="Tokens in one block of the KV cache. Smaller wastes less on a sequence's last block and caches prefixes in "
        "finer steps; larger means fewer blocks to keep account of.",
    )
    kv_cache_gib: float | None = flag(
        None,
        help="Memory for the KV cache of this rank, in GiB. Too small: few sequences run at once and get preempted; too "
        "large: no memory for anything else. Unset: what a step of a whole token budget leaves on CUDA, 1 on CPU.",
    )
    kv_cache_dtype: str = flag(
        "auto",
        choices=KV_CACHE_DTYPES,
        help="Type of the keys and values that are kept. fp8_e4m3fn takes half of bfloat16's memory, and answers get less "
        "exact. auto: that of --dtype, or of what it leaves in float32.",
    )
    cuda_memory_fraction: float = flag(
        1.0, help="Share of a GPU's memory that this rank may use; the rest is left to other programs."
    )
    max_batch_tokens: int | None = flag(
        None,
        env="MAX_BATCH_PREFILL_TOKENS",
        help="Most tokens of one step; a router's token budget must not exceed it. Also the longest text of a model that takes "
        "prompts as a whole only. Unset: 4096 on CUDA, 512 on CPU; for such models as many as they have positions, up to 4096.",
    )
    cuda_graphs: str = flag(
        "1,2,4,8,16,32,64,128",
        help="On one GPU, numbers of sequences whose decode steps are recorded at start and then played with one launch; fewer "
        "sequences take the next larger one's record, more do without, and so do models in transformers' own modules. Each "
        "takes some memory and a moment of the start. 0: none.",
    )
    num_threads: int | None = flag(
        None,
        help="CPU threads of this rank. Too many: ranks and router wait for each other. Unset: cores / ranks, or 1 for a "
        "single rank whose model is so small that it decodes faster on one.",
    )
    watermark_gamma: float = flag(
        0.5, help="Share of the vocabulary that a watermark prefers at each token. Detection must be told the same."
    )
    watermark_delta: float = flag(
        2.0, help="What a watermark adds to the logits of that share. Larger is easier to detect and worse to read."
    )
    rank: int = flag(0, help="This process's place among the shards, from 0.")
    world_size: int = flag(1, help="How many shards the model is split over. It must divide the number of heads.")
    master_addr: str = flag("localhost", help="Where rank 0 gathers the other ranks.")
    master_port: int = flag(29500, help="Port of that meeting place. Two servers on one machine need two ports.")
    collective_timeout_seconds: float = flag(
        120.0,
        help="How long a rank waits for the others before it gives up and exits. Too short: a slow load looks like a death; "
        "too long: a hang is noticed late.",
    )
    one_shot_all_reduce: bool = flag(
        False,
        help="Let GPUs that read each other's memory make small sums in one kernel each, which a decode step of many ranks "
        "waits for, instead of NCCL. Tried at the start, and left to NCCL where it does not work. It has not run on GPUs yet.",
    )
    json_output: bool = flag(False, help="Log one JSON object a line instead of text.")

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"`world_size` cannot be < 1. Given: {self.world_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"`rank` must be in [0, {self.world_size}). Given: {self.rank}")
        for name in ("block_size", "kv_cache_gib", "max_batch_tokens", "num_threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be > 0. Given: {value}")

        if not all(word.strip().isdecimal() for word in self.cuda_graphs.split(",")):
            raise ValueError(f"`cuda_graphs` must be numbers with commas between them, or 0. Given: {self.cuda_graphs}")
        for name in ("cuda_memory_fraction", "watermark_gamma"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be > 0 and <= 1. Given: {getattr(self, name)}")

    @property
    def decode_sizes(self) -> list[int]:
        """Batch sizes whose decode steps are to be recorded."""
        return [size for size in map(int, self.cuda_graphs.split(",")) if size]

    @property
    def socket_path(self) -> str:
        return f"{self.shard_uds_path}-{self.rank}"
