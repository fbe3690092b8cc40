"""Tables and the picture of ``benchmark``'s JSON; run with the JSON file, it prints the tables."""

import json
import sys
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def tables(result: Figures) -> str:
    """Markdown: a table for each group, then what failed."""
    machine = result["machine"]
    engine = f"onnxruntime {machine['onnxruntime']}"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])}); {engine}; "
        f"{result['threads']} threads; checkpoint {result['checkpoint']}, canvas {result['image_size']}"
    ]
    groups: dict[str, list[Figures]] = {}
    for variant in result["variants"]:
        groups.setdefault(variant["group"], []).append(variant)
    for group, rows in groups.items():
        if group in ("encoder", "decoder"):
            lines += _compared(group, rows, result["gmacs"][group])
        else:
            lines += _growing(group, rows)
    lines += [f"{name}: {why}" for name, why in result["failed"].items()]
    return "\n".join(lines)


def _compared(group: str, rows: list[Figures], gmacs: float) -> list[str]:
    """Against the float32 ONNX file of ours, which comes first, and the floor of its run."""
    rate, base = rows[0]["gemm_gflop_per_s"], rows[0]
    floor = 2 * gmacs / rate
    lines = ["", f"{group}: {gmacs:.2f} GMAC of PyTorch's take {1e3 * floor:.0f} ms at the {rate:.0f} "
             "GFLOP/s of a matrix product in the same rounds", ""]  # fmt: skip
    lines += [
        "| | least ms | median ms | ÷ ours fp32 | ÷ floor | mask IoU, mean | worst | MB | memory MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "-"
        lines.append(
            f"| {row['name']} | {1e3 * row['min']:.0f} | {1e3 * row['p50']:.0f} "
            f"| {row['min'] / base['min']:.2f} | {row['min'] / floor:.2f} "
            f"| {row['miou']:.4f} | {row['worst_iou']:.3f} | {size} | {row['peak_bytes'] / 1e6:.0f} |"
        )
    return lines


def _growing(group: str, rows: list[Figures]) -> list[str]:
    """Beside the first row; what a session costs before the first answer too."""
    lines = ["", f"| {group} | least ms | median ms | ÷ first | load ms | memory MB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        lines.append(
            f"| {row['name']} | {1e3 * row['min']:.0f} | {1e3 * row['p50']:.0f} "
            f"| {row['min'] / rows[0]['min']:.2f} | {1e3 * row['load_s']:.0f} "
            f"| {row['peak_bytes'] / 1e6:.0f} |"
        )
    return lines


def draw(result: Figures, path: Path) -> None:
    """Draws the latency of each encoder, with its masks' IoU; nothing where none was measured."""
    from matplotlib.figure import Figure

    rows = [row for row in result["variants"] if row["group"] == "encoder"]
    if not rows:
        return
    rows.sort(key=lambda row: float(row["min"]))
    figure = Figure(figsize=(9, 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        time = 1e3 * row["min"]
        axes.plot(time, y, "o", color="tab:blue" if row["ours"] else "tab:gray")
        label = f"{time:.0f} ms, IoU {row['miou']:.4f}"
        axes.annotate(label, (time, y), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(right=2.5 * time)
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel(
        f"encoder, ms (least of {rows[0]['n']} rounds), {result['machine']['cpu']}; blue: pocketsam"
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text())))
