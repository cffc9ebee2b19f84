"""Stores and shows the results of `compare.py`, `growth.py` and `gpu.py`.

    python benchmarks/results.py     # results.json -> results.md and docs/speed.svg

A record is a dict with one measurement, its date, machine and versions.  Records of the kind
"comparison" come from `compare.py`; those of other kinds have their own "header", "rows" and
"note".  A newer record replaces an older one of the same measurement on the same hardware.
"""

import json
import pathlib
from collections.abc import Iterable

HERE = pathlib.Path(__file__).resolve().parent
RECORDS, PAGE = HERE / "results.json", HERE / "results.md"
CHART = HERE.parent / "docs" / "speed.svg"
LABELS = {
    "densenet_jax": "densenet_jax",
    "flax": "plain Flax",
    "torch_compile": "torch.compile",
    "torch": "PyTorch eager",
    "keras": "Keras (JAX)",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO, latency",
    "openvino_throughput": "OpenVINO, throughput",
    "densenet_jax_callers": "densenet_jax, a caller a core",
    "densenet_jax_plain": "densenet_jax, plain",
}
DEPTHS = {
    (6, 12, 24, 16): "DenseNet-121",
    (6, 12, 32, 32): "DenseNet-169",
    (6, 12, 48, 32): "DenseNet-201",
    (6, 12, 64, 48): "DenseNet-264",
}
# (key of a contender's figures, format, title of the column)
EXTRA = (
    ("p50_ms", ".1f", "p50 ms"),
    ("p99_ms", ".1f", "p99 ms"),
    ("differs", ".0e", "logits differ by"),
)
# Records that agree in these fields are of the same measurement.
KEY = ("kind", "what", "hardware", "device", "mode", "batch", "size", "dtype", "blocks", "cold")


def key(record: dict) -> str:
    """Returns a text that is the same for records of the same measurement."""
    return json.dumps([record.get(name) for name in KEY])


def title(record: dict) -> str:
    """Returns the setting of a comparison in words."""
    blocks = tuple(record["blocks"])
    network = DEPTHS.get(blocks, f"DenseNet with blocks of {', '.join(map(str, blocks))} layers")
    doing = "training step" if record["mode"] == "train" else "inference"
    return (
        f"{network}, {doing}, batch {record['batch']}, {record['size']}x{record['size']}, "
        f"{record['dtype']}"
    )


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Returns a Markdown table; the first column is text, the others numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Returns three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def gigabytes(value: int | None) -> str:
    """Returns bytes in GB, or "" if unknown."""
    return "" if value is None else f"{value / 1e9:.2f}"


def comparison(record: dict) -> str:
    """Returns the table of a comparison as Markdown, fastest contender first, with notes."""
    limit, rows = record.get("limit"), []
    measured = {key for figures in record["contenders"].values() for key in figures}
    extra = [(key, form) for key, form, _ in EXTRA if key in measured]
    titles = [title for key, _, title in EXTRA if key in measured]
    best_first = sorted(record["contenders"].items(), key=lambda c: -c[1]["images_per_second"])
    for name, figures in best_first:
        speed, ratio = figures["images_per_second"], figures.get("base_is_faster")
        rows.append(
            [
                LABELS[name],
                number(speed),
                "" if limit is None else f"{100 * speed / limit:.0f} %",
                "" if ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratio),
                gigabytes(figures["peak_bytes"]),
                gigabytes(figures.get("temporary_bytes")),
                f"{figures['compile_seconds']:.1f}",
            ]
        )
        # Columns of inference alone.
        rows[-1] += [f"{figures[key]:{form}}" if key in figures else "" for key, form in extra]
    head = ["", "img/s", "of the limit", "densenet_jax is faster by", "peak GB", "temporaries GB"]
    versions = {}
    for figures in record["contenders"].values():
        versions.update(figures["versions"])
    rounds = len(next(iter(record["contenders"].values()))["seconds_per_step"])
    notes = [
        f"{record['hardware']}; {record['host']}; {record['date']}; {rounds} rounds; "
        + ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
        + ("; torch.compile without its cache." if record["cold"] else ".")
    ]
    if limit is not None:
        machine = record["machine"]
        notes.append(
            f"Limit {number(limit)} img/s: measured there, {machine['flops'] / 1e9:,.0f} GFLOP/s "
            f"in a matrix product and {machine['bandwidth'] / 1e9:,.0f} GB/s in a copy."
        )
    return f"{table([*head, 'compile s', *titles], rows)}\n\n" + "\n".join(notes)


def generic(record: dict) -> str:
    """Returns the table of a record with its own header and rows as Markdown."""
    rows = [
        [number(v) if isinstance(v, (int, float)) else str(v) for v in row]
        for row in record["rows"]
    ]
    return f"{table(record['header'], rows)}\n\n{record['note']}; {record['date']}."


def page(records: list[dict]) -> str:
    """Returns the text of results.md."""
    parts = [
        "# Side by side",
        "Written by `benchmarks/results.py` from `results.json`; `compare.py --help` describes\n"
        "the method. Ratios compare runs of the same round: median (smallest to largest).",
    ]
    for record in records:
        if record["kind"] == "comparison":
            parts += [f"## {title(record)}, on {record['device'].upper()}", comparison(record)]
        else:
            parts += [f"## {record['what']}", generic(record)]
    return "\n\n".join(parts) + "\n"


def chart(records: list[dict]) -> str:
    """Returns an SVG chart with a group of bars for each comparison.

    The length of a bar is the contender's speed relative to the fastest of its group.
    """
    groups = [r for r in records if r["kind"] == "comparison"]
    left, width, bar, gap = 130, 430, 18, 44
    lines, y = [], 10
    for record in groups:
        lines.append(f'<text x="10" y="{y + 14}" class="head">{title(record)}</text>')
        y += 24
        speeds = {n: f["images_per_second"] for n, f in record["contenders"].items()}
        for name in sorted(speeds, key=speeds.get, reverse=True):
            length = width * speeds[name] / max(speeds.values())
            colour = "#1f6f5c" if name == "densenet_jax" else "#9aa5b1"
            box = f'x="{left}" y="{y}" width="{length:.0f}" height="{bar - 3}" fill="{colour}"'
            speed, end, base = f"{number(speeds[name])} img/s", f"{left + length + 6:.0f}", y + 13
            lines.append(
                f'<text x="{left - 8}" y="{base}" text-anchor="end">{LABELS[name]}</text>'
                f'<rect {box}/><text x="{end}" y="{base}">{speed}</text>'
            )
            y += bar
        hardware = record["hardware"] if record["device"] == "gpu" else record["host"]
        lines.append(f'<text x="{left}" y="{y + 13}" class="note">{hardware}</text>')
        y += gap
    style = (
        "text{font:12px sans-serif;fill:#57606a}.head{font-weight:bold}.note{font-size:10px}"
        "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" '
        f'viewBox="0 0 680 {y}"><style>{style}</style>\n' + "\n".join(lines) + "\n</svg>\n"
    )


def load() -> list[dict]:
    """Returns the stored records."""
    return json.loads(RECORDS.read_text()) if RECORDS.exists() else []


def show(records: list[dict]) -> None:
    """Writes results.md and, if there are comparisons, the chart."""
    PAGE.write_text(page(records))
    if any(record["kind"] == "comparison" for record in records):
        CHART.write_text(chart(records))


def merge(new: list[dict]) -> None:
    """Adds records to the stored ones and rewrites results.md and the chart."""
    kept = join(load(), new)
    RECORDS.write_text(json.dumps(kept, indent=1) + "\n")
    show(kept)


def join(old: list[dict], new: list[dict]) -> list[dict]:
    """Returns old and new records together.

    A new record replaces an old one of the same measurement; in tables with the same header, new
    rows replace old ones with the same first column and other old rows stay.
    """
    kept = {key(record): record for record in old}
    for record in new:
        before = kept.get(key(record), {})
        if "rows" in record and before.get("header") == record["header"]:
            rows = {str(row[0]): row for row in (*before["rows"], *record["rows"])}
            record = {**record, "rows": list(rows.values())}
        kept[key(record)] = record
    return list(kept.values())


if __name__ == "__main__":
    show(load())
