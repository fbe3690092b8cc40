"""A network with the first block of every stage, for converters that take minutes over a whole one."""

import shutil
from dataclasses import replace

from pocketsam.export.artefact import open_artefact
from pocketsam.export.bundle import describe_file, write_manifest
from pocketsam.export.pipeline import write_bundle
from pocketsam.export.reference import Reference
from pocketsam.export.verification import parity
from pocketsam.runtime.bundle import open_bundle

SIZE = 128


def shallow_reference(pictures):
    reference = Reference("seeded:11", SIZE, images=pictures[:1], calibration=pictures[:1])
    model = reference.loaded.model
    for stage in model.image_encoder.layers:
        stage.blocks = stage.blocks[:1]
    model.mask_decoder.transformer.layers = model.mask_decoder.transformer.layers[:1]
    return reference


def write(reference, path, target, options):
    (report,) = write_bundle(reference, path, target, options, accept="lossy")
    return report


def damaged(bundle, place, network, edit, file=None):
    """A copy of a bundle whose file is edited; the manifest's hash fits, as if it was written so."""
    shutil.copytree(bundle, place)
    manifest = open_bundle(place).manifest
    entry = manifest.network(network)
    path = place / entry.file if file is None else place / entry.file / file
    path.write_bytes(edit(path.read_bytes()))
    changed = replace(entry, **vars(describe_file(place / entry.file)))
    write_manifest(place, replace(manifest, **{network: changed}))
    return place


def verify(reference, bundle):
    return parity.verify(reference.cases, open_artefact(open_bundle(bundle)))


def replaced(old, new):
    """An edit that replaces a tensor's bytes, which must be there."""

    def edit(data):
        assert old.tobytes() in data
        return data.replace(old.tobytes(), new.tobytes())

    return edit
