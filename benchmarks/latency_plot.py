"""LatencyPlot: what a client waits between two tokens against what all clients get, a line for each server, as an SVG.

In: Comparisons. Out: a file with one picture for each model. To the right and below is better.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peer_report import Comparison

PICTURE_INCHES = 5.5, 4.0


def draw(comparisons: list[Comparison], path: Path) -> None:
    width, height = PICTURE_INCHES
    figure = Figure(figsize=(width * len(comparisons), height), layout="tight")
    axes = figure.subplots(1, len(comparisons), squeeze=False)
    for axis, comparison in zip(axes[0], comparisons, strict=True):
        _draw_model(axis, comparison)
    figure.savefig(path, format="svg", metadata={"Date": None})  # the same figures give the same file


def _draw_model(axis: Axes, comparison: Comparison) -> None:
    for server in dict.fromkeys(reading.server for reading in comparison.readings):
        readings = [reading for reading in comparison.readings if reading.server == server]
        speeds = [reading.tokens_per_second for reading in readings]
        gaps = [reading.gap_seconds * 1e3 for reading in readings]
        axis.plot(speeds, gaps, marker="o", label=server)
        for reading, speed, gap in zip(readings, speeds, gaps, strict=True):
            axis.annotate(str(reading.num_clients), (speed, gap), textcoords="offset points", xytext=(5, 5))
    axis.set(title=comparison.name, xlabel="tokens/s, all clients", ylabel="between tokens, median, ms")
    axis.margins(0.1)  # room for the numbers
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(title="clients at the points")
