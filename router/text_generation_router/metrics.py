"""Metrics: what the router counts and measures, under the names of Text Generation Inference, for Prometheus to read.

In: increments, observations, current values. Out: the text exposition format, version 0.0.4. Written here because the usual
client library ends every counter's name in `_total`, which these names do not have. For one thread; knows nothing of what
is counted.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# 0.00015 s to 146 s; rounded, so that the bound in a label is the bound that was compared with.
DURATION_BUCKETS = [float(f"{0.0001 * 1.5**k:.6g}") for k in range(1, 36)]
# The original has each number up to 1024. Endpoint pickers read all this twenty times a second: powers of two will do.
BATCH_SIZE_BUCKETS = [float(2**k) for k in range(11)]
SKIPPED_TOKENS_BUCKETS = [0.0, 1.0, 2.0, 4.0, 8.0]
NUM_TOKEN_BUCKETS = 100

METHODS = ("prefill", "decode")
FAILURES = ("overloaded", "validation", "generation", "incomplete", "dropped", "template")

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """One attribute for each metric, named as it is without `tgi_`. `method` is "prefill" for a step with any prompt in it."""

    def __init__(self) -> None:
        self.request_count = Counter("tgi_request_count", "Requests that were asked for.")
        self.request_success = Counter("tgi_request_success", "Requests that were answered to their end.")
        self.request_failure = Counter(
            "tgi_request_failure", "Requests that were refused or broke off, by the reason.", err=FAILURES
        )
        self.request_duration = _seconds("tgi_request_duration", "From a request's arrival to its last token.")
        self.request_validation_duration = _seconds(
            "tgi_request_validation_duration", "From a request's arrival until it is tokenized, checked and queued."
        )
        self.request_queue_duration = _seconds(
            "tgi_request_queue_duration", "From being queued to a request's first step."
        )
        self.request_inference_duration = _seconds(
            "tgi_request_inference_duration", "From a request's first step to its last token."
        )
        self.request_mean_time_per_token_duration = _seconds(
            "tgi_request_mean_time_per_token_duration", "A request's inference time over its generated tokens."
        )
        self.request_generated_tokens = Histogram("tgi_request_generated_tokens", "Tokens generated for a request.", [])
        self.request_input_length = Histogram("tgi_request_input_length", "Tokens of a request's prompt.", [])
        self.request_max_new_tokens = Histogram(
            "tgi_request_max_new_tokens", "Most tokens that a request may be answered with.", []
        )
        self.request_skipped_tokens = Histogram(
            "tgi_request_skipped_tokens",
            "Tokens of one step beyond the first, for each sequence whose tokens were guessed at (--speculate).",
            SKIPPED_TOKENS_BUCKETS,
        )
        self.queue_size = Gauge("tgi_queue_size", "Sequences that wait to run.")
        self.batch_current_size = Gauge("tgi_batch_current_size", "Sequences that run; 0 when idle.")
        self.batch_current_max_tokens = Gauge(
            "tgi_batch_current_max_tokens", "Tokens that the running sequences may grow to, prompts and answers together."
        )
        self.batch_next_size = Histogram(
            "tgi_batch_next_size", "Sequences that joined in one step, for steps in which any did.", BATCH_SIZE_BUCKETS
        )
        self.batch_inference_count = Counter("tgi_batch_inference_count", "Steps that the shards were sent.", method=METHODS)
        self.batch_inference_success = Counter(
            "tgi_batch_inference_success", "Steps that the shards computed.", method=METHODS
        )
        self.batch_inference_failure = Counter(
            "tgi_batch_inference_failure", "Steps that failed, and with them their sequences.", method=METHODS
        )
        self.batch_inference_duration = _seconds(
            "tgi_batch_inference_duration", "A step, as the router waits for its result.", method=METHODS
        )
        self.batch_forward_duration = _seconds(
            "tgi_batch_forward_duration", "The model's part of a step, as the shards measured it.", method=METHODS
        )
        self.batch_decode_duration = _seconds(
            "tgi_batch_decode_duration", "The choice of a step's tokens, as the shards measured it.", method=METHODS
        )
        self.batch_filter_duration = _seconds(
            "tgi_batch_filter_duration", "Always empty: every step names its sequences, none is filtered out.", method=METHODS
        )
        self.batch_concat_duration = _seconds(
            "tgi_batch_concat_duration", "Always empty: sequences join a step without a copy.", method=("decode",)
        )
        self.batch_concat = Counter(
            "tgi_batch_concat", "Steps in which new sequences joined running ones.", reason=("chunking",)
        )
        self.batch_max_total_tokens = Gauge("tgi_batch_max_total_tokens", "Tokens that the KV cache holds.")
        self.num_requests_waiting = Gauge("tgi_num_requests_waiting", "As tgi_queue_size, for gateways.")
        self.num_requests_running = Gauge("tgi_num_requests_running", "As tgi_batch_current_size, for gateways.")
        self.kv_cache_utilization = Gauge(
            "tgi_kv_cache_utilization", "Blocks of the KV cache that running sequences own, from 0 to 1."
        )
        self.kv_cache_block_size = Gauge("tgi_kv_cache_block_size", "Tokens in one block of the KV cache.")
        self.kv_cache_num_blocks = Gauge("tgi_kv_cache_num_blocks", "Blocks of the KV cache.")

    def size_tokens(self, max_input_tokens: int, max_total_tokens: int) -> None:
        """Histograms of tokens get their buckets. Call it whenever the shards have said what they hold: what is counted
        stays, unless that has changed; then those histograms start again from 0."""
        self.request_input_length.set_bounds(_linear_buckets(max_input_tokens))
        self.request_generated_tokens.set_bounds(_linear_buckets(max_total_tokens))
        self.request_max_new_tokens.set_bounds(_linear_buckets(max_total_tokens))

    def render(self) -> bytes:
        metrics: list[Counter | Gauge | Histogram] = list(vars(self).values())
        return "".join(itertools.chain.from_iterable(metric.lines() for metric in metrics)).encode()


class Counter:
    """Has all of its label values from the start; another one is a KeyError."""

    def __init__(self, name: str, description: str, **labels: Sequence[str]) -> None:
        self._head = _head(name, description, "counter")
        self._counts = dict.fromkeys(_all_labels(labels), 0)
        self._series = [(f"{name}{_braces(key)}", key) for key in self._counts]

    def inc(self, **labels: str) -> None:
        self._counts[tuple(labels.items())] += 1

    def lines(self) -> Iterator[str]:
        yield self._head
        for series, key in self._series:
            yield f"{series} {self._counts[key]}\n"


class Gauge:
    def __init__(self, name: str, description: str) -> None:
        self._name = name
        self._head = _head(name, description, "gauge")
        self._value: float = 0

    def set(self, value: float) -> None:
        self._value = value

    def lines(self) -> Iterator[str]:
        yield self._head
        yield f"{self._name} {self._value}\n"


class Histogram:
    """Has all of its label values from the start, as counters have. Bounds are upper ones, inclusive and ascending."""

    def __init__(self, name: str, description: str, bounds: Sequence[float], **labels: Sequence[str]) -> None:
        self._name = name
        self._head = _head(name, description, "histogram")
        self._labels = _all_labels(labels)
        self._bounds: list[float] | None = None
        self.set_bounds(bounds)

    def set_bounds(self, bounds: Sequence[float]) -> None:
        """Other bounds than before begin a new histogram."""
        if self._bounds != list(bounds):
            self._bounds = list(bounds)
            self._series = {key: _HistogramSeries(self._name, key, self._bounds) for key in self._labels}

    def observe(self, value: float, **labels: str) -> None:
        self._series[tuple(labels.items())].observe(value)

    def lines(self) -> Iterator[str]:
        yield self._head
        for series in self._series.values():
            yield from series.lines()


class _HistogramSeries:
    """One histogram's observations with one set of labels. What its lines begin with is made once."""

    __slots__ = ("_bounds", "_buckets", "_count", "_counts", "_sum", "_total")

    def __init__(self, name: str, labels: Labels, bounds: list[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # of each bucket alone
        self._total = 0.0
        self._buckets = [f"{name}_bucket{_braces((*labels, ('le', le)))}" for le in (*map(repr, bounds), "+Inf")]
        self._sum, self._count = f"{name}_sum{_braces(labels)}", f"{name}_count{_braces(labels)}"

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def lines(self) -> Iterator[str]:
        count = 0
        for bucket, own_count in zip(self._buckets, self._counts, strict=True):
            count += own_count
            yield f"{bucket} {count}\n"
        yield f"{self._sum} {self._total}\n"
        yield f"{self._count} {count}\n"


def _seconds(name: str, description: str, **labels: Sequence[str]) -> Histogram:
    return Histogram(name, f"{description} In seconds.", DURATION_BUCKETS, **labels)


def _linear_buckets(maximum: int) -> list[float]:
    return [maximum * k / NUM_TOKEN_BUCKETS for k in range(1, NUM_TOKEN_BUCKETS + 1)]


def _all_labels(labels: dict[str, Sequence[str]]) -> list[Labels]:
    """Every combination of label values; without labels that is one, the empty one."""
    return list(itertools.product(*([(name, value) for value in values] for name, values in labels.items())))


def _head(name: str, description: str, kind: str) -> str:
    escaped = description.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def _braces(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
