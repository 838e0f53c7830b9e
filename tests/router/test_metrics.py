"""Metrics as Prometheus reads them. `parsed` is the reading side: it accepts what the exposition format allows, no more."""

import json
import math
import pathlib
import re

import pytest

from text_generation_router.metrics import CONTENT_TYPE, DURATION_BUCKETS, Counter, Gauge, Histogram, Metrics

ROOT = pathlib.Path(__file__).parents[2]
ORIGINAL_NAMES = {
    *("request_count", "request_success", "request_failure", "request_duration", "request_validation_duration"),
    *("request_queue_duration", "request_inference_duration", "request_mean_time_per_token_duration"),
    *("request_generated_tokens", "request_input_length", "request_max_new_tokens", "request_skipped_tokens"),
    *("queue_size", "batch_current_size", "batch_current_max_tokens", "batch_next_size", "batch_inference_count"),
    *("batch_inference_success", "batch_inference_failure", "batch_inference_duration", "batch_forward_duration"),
    *("batch_decode_duration", "batch_filter_duration", "batch_concat_duration", "batch_concat"),
    "batch_max_total_tokens",
}
GATEWAY_NAMES = {
    *("num_requests_waiting", "num_requests_running", "kv_cache_utilization", "kv_cache_block_size"),
    "kv_cache_num_blocks",
}

HEAD = re.compile(r"# HELP (\w+) (.+)\n# TYPE (\w+) (counter|gauge|histogram)\n((?:[^#\n].*\n)+)")
SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)+)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\.)*)"')
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parsed(text):
    """{name: (kind, {(sample's name, its labels): value})}"""
    families = {}
    for match in HEAD.finditer(text):
        name, _, same_name, kind, lines = match.groups()
        assert name == same_name and name not in families
        families[name] = (kind, dict(sample(line, name) for line in lines.splitlines()))
    assert "".join(match.group() for match in HEAD.finditer(text)) == text, "something is no family"
    return families


def sample(line, family):
    name, labels, value = SAMPLE.fullmatch(line).groups()
    assert name.removeprefix(family) in ("", "_bucket", "_sum", "_count")
    pairs = ((key, re.sub(r"\\.", lambda escape: ESCAPES[escape.group()], raw)) for key, raw in LABEL.findall(labels or ""))
    return (name, tuple(pairs)), float(value)


def samples(metric):
    ((_, found),) = parsed("".join(metric.lines())).values()
    return found


def rendered(metrics):
    return parsed(metrics.render().decode())


def buckets(found, *labels):
    """[(bound, count)] in the order of the text."""
    return [
        (float(key[-1][1]), count) for (name, key), count in found.items() if name.endswith("_bucket") and key[:-1] == labels
    ]


def test_every_metric_of_the_original_and_of_gateways_is_there_under_its_name():
    families = rendered(Metrics())
    assert set(families) == {f"tgi_{name}" for name in ORIGINAL_NAMES | GATEWAY_NAMES}
    assert set(families) == {f"tgi_{name}" for name in vars(Metrics())}


def test_the_content_type_names_the_format():
    assert "version=0.0.4" in CONTENT_TYPE


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("request_failure", "err", {"overloaded", "validation", "generation", "incomplete", "dropped", "template"}),
        ("batch_inference_count", "method", {"prefill", "decode"}),
        ("batch_inference_success", "method", {"prefill", "decode"}),
        ("batch_inference_failure", "method", {"prefill", "decode"}),
        ("batch_concat", "reason", {"chunking"}),
    ],
)
def test_counters_show_every_label_value_from_the_start(name, label, values):
    kind, found = rendered(Metrics())[f"tgi_{name}"]
    assert kind == "counter"
    assert found == {(f"tgi_{name}", ((label, value),)): 0 for value in values}


def test_counters_count_and_have_no_suffix():
    metrics = Metrics()
    metrics.request_count.inc()
    metrics.request_count.inc()
    metrics.request_failure.inc(err="validation")
    families = rendered(metrics)
    assert families["tgi_request_count"] == ("counter", {("tgi_request_count", ()): 2})
    assert families["tgi_request_failure"][1][("tgi_request_failure", (("err", "validation"),))] == 1
    assert families["tgi_request_failure"][1][("tgi_request_failure", (("err", "overloaded"),))] == 0


@pytest.mark.parametrize("labels", [{}, {"err": "tired"}, {"method": "decode"}, {"err": "dropped", "method": "decode"}])
def test_labels_that_nobody_declared_are_errors(labels):
    with pytest.raises(KeyError):
        Metrics().request_failure.inc(**labels)


def test_gauges_show_the_last_value():
    metrics = Metrics()
    metrics.queue_size.set(3)
    metrics.queue_size.set(1)
    metrics.kv_cache_utilization.set(0.25)
    families = rendered(metrics)
    assert families["tgi_queue_size"] == ("gauge", {("tgi_queue_size", ()): 1})
    assert families["tgi_kv_cache_utilization"] == ("gauge", {("tgi_kv_cache_utilization", ()): 0.25})


def test_histograms_are_cumulative_and_bounds_are_inclusive():
    histogram = Histogram("h", "help", [1.0, 2.0, 5.0])
    for value in (0.5, 1.0, 1.5, 5.0, 7.0):
        histogram.observe(value)
    found = samples(histogram)
    assert buckets(found) == [(1, 2), (2, 3), (5, 4), (math.inf, 5)]
    assert found[("h_sum", ())] == 15.0
    assert found[("h_count", ())] == 5


def test_histograms_keep_label_values_apart():
    metrics = Metrics()
    metrics.batch_inference_duration.observe(0.01, method="decode")
    metrics.batch_inference_duration.observe(0.02, method="decode")
    kind, found = rendered(metrics)["tgi_batch_inference_duration"]
    assert kind == "histogram"
    assert found[("tgi_batch_inference_duration_count", (("method", "decode"),))] == 2
    assert found[("tgi_batch_inference_duration_sum", (("method", "decode"),))] == pytest.approx(0.03)
    assert found[("tgi_batch_inference_duration_count", (("method", "prefill"),))] == 0
    assert buckets(found, ("method", "decode"))[-1] == (math.inf, 2)
    assert buckets(found, ("method", "prefill"))[-1] == (math.inf, 0)


def test_every_histogram_ends_with_as_many_as_it_counted():
    metrics = Metrics()
    metrics.size_tokens(100, 200)
    for name, labels in [("request_duration", {}), ("request_input_length", {}), ("batch_next_size", {})]:
        for value in (0, 1, 1e9):
            getattr(metrics, name).observe(value, **labels)
        found = rendered(metrics)[f"tgi_{name}"][1]
        counts = [count for _, count in buckets(found)]
        assert counts == sorted(counts)
        assert buckets(found)[-1] == (math.inf, 3)
        assert found[(f"tgi_{name}_count", ())] == 3


def test_durations_have_the_buckets_of_the_original():
    assert len(DURATION_BUCKETS) == 35
    for number, bound in enumerate(DURATION_BUCKETS, start=1):
        assert bound == pytest.approx(0.0001 * 1.5**number, rel=1e-5)
    found = rendered(Metrics())["tgi_request_duration"][1]
    assert [bound for bound, _ in buckets(found)] == [*DURATION_BUCKETS, math.inf]


def test_histograms_of_tokens_get_a_hundred_buckets_when_the_sizes_are_known():
    metrics = Metrics()
    metrics.size_tokens(1000, 2000)
    families = rendered(metrics)
    for name, maximum in [("request_input_length", 1000), ("request_generated_tokens", 2000), ("request_max_new_tokens", 2000)]:
        bounds = [bound for bound, _ in buckets(families[f"tgi_{name}"][1])]
        assert len(bounds) == 101
        assert bounds[0] == maximum / 100 and bounds[-2] == maximum


def test_a_restart_with_the_same_sizes_keeps_the_counts_and_one_with_others_does_not():
    metrics = Metrics()
    metrics.size_tokens(1000, 2000)
    metrics.request_input_length.observe(17)
    metrics.size_tokens(1000, 2000)
    assert rendered(metrics)["tgi_request_input_length"][1][("tgi_request_input_length_count", ())] == 1
    metrics.size_tokens(500, 2000)
    assert rendered(metrics)["tgi_request_input_length"][1][("tgi_request_input_length_count", ())] == 0


def test_text_of_all_kinds_survives_escaping():
    nasty = 'a "quoted" \\ and\na second line'
    counter = Counter("c", nasty, label=(nasty, "plain"))
    counter.inc(label=nasty)
    assert "# HELP c a \"quoted\" \\\\ and\\na second line\n" in "".join(counter.lines())
    assert samples(counter) == {("c", (("label", nasty),)): 1, ("c", (("label", "plain"),)): 0}


def test_integers_stay_integers_and_floats_lose_nothing():
    gauge = Gauge("g", "help")
    gauge.set(123456789)
    assert list(gauge.lines())[-1] == "g 123456789\n"
    gauge.set(0.1 + 0.2)
    assert samples(gauge) == {("g", ()): 0.1 + 0.2}


def dashboard():
    return json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def test_the_dashboard_asks_for_metrics_and_labels_that_exist_only():
    metrics = Metrics()
    metrics.size_tokens(10, 20)
    found = [key for _, family in rendered(metrics).values() for key in family]
    names = {name for name, _ in found}
    labels = {label for _, pairs in found for label, _ in pairs} | {"job", "instance"}  # those that Prometheus adds
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    queries = [variable["query"] for variable in dashboard()["templating"]["list"]]
    assert expressions and all("tgi_" in expression for expression in expressions)
    for text in map(json.dumps, expressions + queries):
        assert set(re.findall(r"tgi_\w+", text)) <= names
    for expression in expressions:
        grouped = [label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.findall(r"\w+", group)]
        assert {*grouped, *re.findall(r"(\w+)=~?\"", expression)} <= labels


def test_the_dashboard_can_be_imported_for_any_data_source():
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert dashboard()["id"] is None and dashboard()["uid"] and dashboard()["schemaVersion"]
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in panels())


def test_the_documentation_names_every_metric_and_no_other():
    text = (ROOT / "docs" / "metrics.md").read_text()
    names = {f"tgi_{name}" for name in vars(Metrics())}
    mentioned = set(re.findall(r"tgi_\w+", text))
    assert names <= mentioned
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in mentioned - names} <= names
