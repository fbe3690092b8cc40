"""``pocketsam info``: what a bundle holds, and the figures that it was verified by."""

import argparse
from typing import Any

from pocketsam import terminal
from pocketsam.errors import IntegrityError
from pocketsam.runtime.bundle import NETWORKS, Bundle, choose_bundles, open_bundle
from pocketsam.runtime.commands.options import add_bundle
from pocketsam.runtime.manifest_files import NetworkFile


def add_info(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "info", help="what a bundle holds, and the figures it was verified by"
    )
    add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest to stdout")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> None:
    """Checks the files against the manifest, and prints it; ``--json`` prints ``manifest.json``."""
    bundle = open_bundle(args.bundle)
    for network in (*NETWORKS, "golden"):
        bundle.source(network)
    if args.json:
        terminal.print_json(bundle.manifest.to_json())
        return
    _print_manifest(bundle)
    try:
        print_parity(bundle.manifest.parity)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IntegrityError(f"{bundle.path}: damaged parity report: {error!r}") from None


def _print_manifest(bundle: Bundle) -> None:
    manifest, model = bundle.manifest, bundle.manifest.model
    trained = "" if model.trained else ", untrained weights"
    grade = f", {manifest.grade}" if manifest.grade else ""
    print(f"{bundle.path}: {manifest.target} {manifest.precision}, {manifest.image_size} px{grade}")
    if manifest.also:
        inside = choose_bundles(bundle.path)[1:]
        listed = [f"{b.manifest.precision} ({b.manifest.grade or 'not graded'})" for b in inside]
        print(f"  also holds {', '.join(listed)}, each a bundle in a directory of that name")
    print(f"  from {model.checkpoint} (sha256 {model.checkpoint_sha256}{trained})")
    thresholds = ", ".join(f"{name} {value:g}" for name, value in vars(manifest.thresholds).items())
    print(f"  everything: {thresholds}")
    for name in NETWORKS:
        _print_network(name, manifest.network(name))
    print(f"  made with {', '.join(f'{name} {number}' for name, number in manifest.tools.items())}")


def _print_network(name: str, network: NetworkFile) -> None:
    macs = f"{network.macs / 1e9:.2f} GMAC, " if network.macs else ""
    print(f"  {name}: {network.file}, {network.bytes / 1e6:.1f} MB, {macs}sha256 {network.sha256}")
    for direction, tensors in (("input", network.inputs), ("output", network.outputs)):
        for tensor in tensors:
            shape = ", ".join(map(str, tensor.shape))
            print(f"    {direction:6} {tensor.name} [{shape}] {tensor.dtype}")
    for note in notes(network):
        print(f"    {note}")


def notes(network: NetworkFile) -> list[str]:
    """Returns what the converter noted of a network, such as operations that a delegate leaves out."""
    found = network.details.get("notes")
    return [note for note in found if isinstance(note, str)] if isinstance(found, list) else []


def print_parity(parity: dict[str, Any] | None) -> None:
    """Prints the parity table of a manifest or a report, with ✓ or ✗ for each tensor."""
    if parity is None:
        print("  not verified (written with --no-verify)")
        return
    if "grade" not in parity:  # schema version 1
        print("  verified by an older pocketsam, whose report says too little: export it again")
        return
    runner, reference = parity["runner"], parity["reference"]
    print(
        f"  {parity['precision']}: {runner} against {reference}, {parity['cases']} cases, "
        "the worst of each:"
    )
    width = max(len(f"{row['part']} {row['tensor']}") for row in parity["rows"])
    for row in parity["rows"]:
        print(
            f"  {terminal.mark(row['ok'])} {row['part'] + ' ' + row['tensor']:{width}}  {_figures(row)}"
        )
    limits = parity["tolerance"]
    print(
        f"  tolerances: |Δ| ≤ {limits['error']:g} × scale, SNR ≥ {limits['snr_db']:g} dB, "
        f"cosine ≥ {limits['cosine']:g}, score |Δ| ≤ {limits['score']:g}, "
        f"least mask IoU ≥ {limits['mask_iou']:g}, mean ≥ {limits['mask_iou_mean']:g}, "
        f"best mask kept ≥ {limits['best_kept']:.0%}"
    )
    grade, least, mean = parity["grade"], *_least_masks(parity["rows"])
    print(
        f"  {terminal.mark_grade(grade, parity['passed'])} {grade}: mask IoU {least:.4f} the least, ",
        end="",
    )
    print(f"{mean:.4f} the mean, {GRADE_MEANINGS[grade]}")


GRADE_MEANINGS = {
    "equivalent": "the checkpoint's masks but for round-off",
    "close": "masks that a person cannot tell apart",
    "lossy": "masks differ: look at them before you use this",
}


def _least_masks(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Returns the IoU of the least mask, and of the mean, encoder and decoder chained."""
    (row,) = (row for row in rows if (row["part"], row["tensor"]) == ("end to end", "masks"))
    return row["mask_iou"], row["mask_iou_mean"]


def _figures(row: dict[str, Any]) -> str:
    if "mask_iou" in row:
        small = f", {row['small']} small ones by {row['small_changed']:.0%}" if row["small"] else ""
        return (
            f"IoU {row['mask_iou']:.6f} the least of {row['masks']}, mean {row['mask_iou_mean']:.6f}"
            f"{small}; {row['changed']} pixels changed at {row['boundary']} boundary pixels"
        )
    if "score" in row:
        return f"max |Δ| {float(row['score']):.1e}, same best mask {row['kept']}/{row['prompts']}"
    return (
        f"max |Δ| {float(row['max_abs']):.1e}, mean {float(row['mean_abs']):.1e}, "
        f"scale {row['scale']:.3g}, cosine {row['cosine']:.7f}, SNR {float(row['snr_db']):.0f} dB"
    )
