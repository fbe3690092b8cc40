"""COCO datasets of the generator's records."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pocketsam.runtime.everything.polygons import mask_polygons
from pocketsam.runtime.rle import from_rle

CATEGORIES = [{"id": 1, "name": "object"}]


def annotations_of(records: Iterable[Mapping[str, Any]], *, polygons: bool) -> list[dict[str, Any]]:
    """Returns COCO's annotations of the records of an image; masks without a pixel are left out.

    Args:
        records: ``MaskRecord``s with ``segmentation`` as RLE.
        polygons: ``segmentation`` as polygons along the edges of pixels, not as RLE.
    """
    kept = [record for record in records if record["area"]]
    return [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, **_annotation(record, polygons)}
        for number, record in enumerate(kept, start=1)
    ]


def _annotation(record: Mapping[str, Any], polygons: bool) -> dict[str, Any]:
    """Returns a record as COCO wants it: the box counts its last row and column."""
    x, y, width, height = record["bbox"]
    stability = record["stability_score"]
    stable = stability if math.isfinite(stability) else None
    found = {**record, "bbox": [x, y, width + 1, height + 1], "stability_score": stable}
    if polygons:
        found["segmentation"] = mask_polygons(from_rle(record["segmentation"]))
    return found


def join_datasets(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one COCO dataset for datasets of an image each."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        images.append({**record["images"][0], "id": number, "info": record["info"]})
        for annotation in record["annotations"]:
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}
