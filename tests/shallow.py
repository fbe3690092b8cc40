"""A network with the first block of every stage, for converters that take minutes over a whole one."""

import copy
import shutil
from dataclasses import replace

import numpy as np

from pocketsam.export.artefact import open_artefact
from pocketsam.export.battery.battery import Battery
from pocketsam.export.battery.weight_files import open_weights
from pocketsam.export.bundle import describe_file, write_manifest
from pocketsam.export.pipeline import write_bundle
from pocketsam.export.reference import Reference
from pocketsam.export.traced import REFERENCE_TYPES, run_outputs
from pocketsam.export.verification import parity
from pocketsam.runtime import contract as c
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


def changes_constants(bundle, reference, converter, place):
    """Checks that a constant of a decoder's copy, changed by the battery's reader, is computed with."""
    entry, model = (
        open_bundle(bundle).manifest.network("decoder"),
        copy.deepcopy(reference.loaded.model),
    )
    file, changed = bundle / entry.file, place / entry.file
    feeds = reference.cases[0].prompts[0].feeds

    def answer():
        source = changed if changed.is_dir() else changed.read_bytes()
        return converter.load(source, "changed")(feeds)[c.LOW_RES_MASKS]

    opened = open_weights(file, changed)
    healthy, constants = answer(), {w.name: w.values for w in opened.weights()}
    weight = model.mask_decoder.output_hypernetworks_mlps[0].layers[1].weight.detach()
    (name,) = (k for k, x in constants.items() if np.array_equal(x.ravel(), weight.numpy().ravel()))
    opened.write(name, -2 * constants[name])
    weight.mul_(-2)
    wanted = run_outputs(REFERENCE_TYPES["decoder"](model), feeds)[c.LOW_RES_MASKS]
    assert np.abs(answer() - wanted).max() < 1e-3 * wanted.std()
    assert np.abs(healthy - wanted).max() > 0.01 * wanted.std()
    opened.write(name, constants[name])
    assert describe_file(changed) == describe_file(file)
    assert opened.change_epsilon(0.1)
    assert np.abs(answer() - healthy).max() > 0.01 * healthy.std()


def finds_damages(bundle, reference, target, place):
    """Checks that the certificate of fp32 finds every damage of the battery."""
    subject = Battery(reference, bundle, target, target.precision("fp32"))
    outcomes = list(subject.run_all(place))
    assert len(outcomes) == 44
    assert not [outcome for outcome in outcomes if not (outcome.golden and outcome.checkpoint)]
