"""A plane to point at: an inline SVG whose readout names the nearest measured point, and the merge that is there."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

from evals.report.surface.plane_figure import NAME_SIZE, name_places, names_of
from evals.results.store import Record

WIDTH, PAD = 640, 14
TEXT_SIZE = 12
# Viridis at even steps, light for a high value; of a loss the other way round.
SHADES = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")

_SCRIPT = """
(() => {
  const root = document.getElementById("@ID@");
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const svg = root.querySelector("svg"), out = root.querySelector("output"), ring = svg.querySelector(".ring");
  const number = value => value === null ? "–" : Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toFixed(4);
  const show = point => {
    ring.setAttribute("cx", point.px); ring.setAttribute("cy", point.py); ring.removeAttribute("visibility");
    out.textContent = `${point.name ? point.name + ": " : ""}x ${point.x.toFixed(2)}, y ${point.y.toFixed(2)} · loss ` +
      `${number(point.loss)} ± ${number(point.error)} · ${data.score} ${number(point.score)} · weights ` +
      point.weights.map(weight => weight.toFixed(3)).join(" ");
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), k = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * k, y = (event.clientY - box.top) * k;
    show(data.points.reduce((a, b) => Math.hypot(a.px - x, a.py - y) <= Math.hypot(b.px - x, b.py - y) ? a : b));
  });
  for (const button of root.querySelectorAll("button")) button.addEventListener("click", () => {
    for (const other of root.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
    for (const cell of svg.querySelectorAll("rect")) cell.setAttribute("fill", cell.dataset[button.dataset.kind]);
  });
})();
"""


def interactive_plane(record: Record, identity: str) -> str:
    """Return an HTML element: cells coloured by loss or score, marks, and a readout of the point that is pointed at.

    Without a script it is the picture alone.

    Args:
        record: of a plane.
        identity: of the element; one page has several.
    """
    (x0, y0), (x1, y1) = record["low"], record["high"]
    scale = (WIDTH - 2 * PAD) / (x1 - x0)
    height = round(scale * (y1 - y0) + 2 * PAD)

    def pixel(x: float, y: float) -> tuple[float, float]:
        return round(PAD + (x - x0) * scale, 1), round(height - PAD - (y - y0) * scale, 1)

    points = [_point(record, point, pixel) for point in record["points"]]
    marks = [_mark(record, at, mark, pixel) for at, mark in enumerate(record["marks"])]
    payload = {"score": record["score"].replace("_", " "), "points": [*points, *(m for m in marks if not m["off"])]}
    label = f"Loss over the plane {record['axes']}; every measured point is in the arrays beside this page."
    drawn = "".join([*_cells(record, pixel), *_circles(record, marks, height)])
    safe = json.dumps(payload, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="plane" id="{identity}"><p><button type="button" data-kind="loss" aria-pressed="true">loss</button> '
        f'<button type="button" data-kind="score" aria-pressed="false">{html.escape(payload["score"])}</button></p>'
        f'<svg class="figure" viewBox="0 0 {WIDTH} {height}" style="width: {WIDTH}px" shape-rendering="crispEdges" role="img" '
        f'aria-label="{html.escape(label)}">{drawn}<circle class="ring" r="7" fill="none" stroke="#fff" stroke-width="2" '
        'visibility="hidden"/></svg><p><output>Point at the plane: the nearest measured point is read out, with the weights '
        "that <code>merge-models --method linear</code> takes there.</output></p>"
        f'<script type="application/json">{safe}</script><script>{_SCRIPT.replace("@ID@", identity)}</script></div>'
    )


def _point(record: Record, point: Sequence[Any], pixel: Any) -> dict[str, Any]:
    _, _, x, y, loss, error, score = point
    px, py = pixel(x, y)
    weights = [round(o + x * u + y * v, 4) for o, u, v in zip(record["origin"], record["u"], record["v"], strict=True)]
    named = {"x": round(x, 4), "y": round(y, 4), "px": px, "py": py}
    return named | {"loss": loss, "error": error, "score": score, "weights": weights, "name": ""}


def _mark(record: Record, at: int, mark: Record, pixel: Any) -> dict[str, Any]:
    count = len(record["marks"]) - 1
    px, py = pixel(mark["x"], mark["y"])
    weights = [1 / count] * count if at == count else [float(k == at) for k in range(count)]
    off = mark["off"] > 1e-6 * (record["high"][0] - record["low"][0])
    values = {"loss": mark["loss"], "error": mark["standard_error"], "score": mark["score"], "name": mark["name"]}
    return {
        "x": round(mark["x"], 4),
        "y": round(mark["y"], 4),
        "px": px,
        "py": py,
        "weights": weights,
        "off": off,
    } | values


def _circles(record: Record, marks: Sequence[dict[str, Any]], height: float) -> list[str]:
    """Return a circle for each mark, and the names that cover no other."""
    k, names = TEXT_SIZE / NAME_SIZE, names_of(record["marks"])
    places = name_places(
        [(m["px"] / k, (height - m["py"]) / k) for m in marks], names, ((WIDTH - PAD) / k, (height - PAD) / k)
    )
    circles = [f'<circle cx="{m["px"]}" cy="{m["py"]}" r="4.5" fill="#fff" stroke="#000"/>' for m in marks]
    return circles + [
        f'<text x="{marks[at]["px"] + right * k:.1f}" y="{marks[at]["py"] - up * k:.1f}" font-size="{TEXT_SIZE}" fill="#000" '
        f'stroke="#fff" stroke-width="3" paint-order="stroke">{html.escape(names[at])}</text>'
        for at, (right, up) in places.items()
    ]


def _cells(record: Record, pixel: Any) -> list[str]:
    """Return a rectangle around every measured point, half way to its neighbours; those of a finer level over the coarse."""
    side, step = record["side"]
    by_place = {(point[0], point[1]): point for point in record["points"]}
    losses = [math.log(max(point[4], 1e-12)) for point in record["points"] if point[4] is not None]
    scores = [point[6] for point in record["points"] if point[6] is not None]
    width = (record["high"][0] - record["low"][0]) / side
    height = (record["high"][1] - record["low"][1]) / side
    cells = []
    for (i, j), point in sorted(by_place.items(), key=lambda item: -_size(item[0], step)):
        half = _size((i, j), step) / 2
        left, top = pixel(
            max(point[2] - half * width, record["low"][0]), min(point[3] + half * height, record["high"][1])
        )
        right, bottom = pixel(
            min(point[2] + half * width, record["high"][0]), max(point[3] - half * height, record["low"][1])
        )
        loss = None if point[4] is None else -math.log(max(point[4], 1e-12))
        fills = _shade(loss, [-value for value in losses]), _shade(point[6], scores)
        cells.append(
            f'<rect x="{left}" y="{top}" width="{right - left:.1f}" height="{bottom - top:.1f}" fill="{fills[0]}" '
            f'data-loss="{fills[0]}" data-score="{fills[1]}"/>'
        )
    return cells


def _size(at: tuple[int, int], step: int) -> int:
    """Return the step of the coarsest lattice that a point is on."""
    size = step
    while size > 1 and (at[0] % size or at[1] % size):
        size //= 2
    return size


def _shade(value: float | None, among: Sequence[float]) -> str:
    if value is None or not among or not math.isfinite(value):
        return "#999999"
    low, high = min(among), max(among)
    height = (value - low) / (high - low) * (len(SHADES) - 1) if high > low else 0.0
    below = min(int(height), len(SHADES) - 2)
    part = height - below
    ends = [[int(shade[k : k + 2], 16) for k in (1, 3, 5)] for shade in SHADES[below : below + 2]]
    return "#" + "".join(f"{round(a * (1 - part) + b * part):02x}" for a, b in zip(*ends, strict=True))
