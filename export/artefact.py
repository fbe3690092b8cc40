"""Opens a bundle's files for comparison with PyTorch, whatever their target."""

from collections.abc import Sequence

from pocketsam.export.target import Call
from pocketsam.export.targets import find_precision, find_target, open_converter
from pocketsam.export.verification.parity import Artefact
from pocketsam.export.verification.tolerances import FLOOR
from pocketsam.runtime.bundle import NETWORKS, Bundle

Providers = str | Sequence[str]


def open_artefact(
    bundle: Bundle, *, providers: Providers = "cpu", threads: int | None = None
) -> Artefact:
    """Returns a bundle's files, open for ``parity.verify``.

    Args:
        bundle: the bundle; of several precisions, its first.
        providers, threads: how to run it, as for the runtime's ``Segmenter``.

    Raises:
        IntegrityError, BundleError: a file cannot be read or run.
        ProviderError: a provider is missing here.
    """
    target = find_target(bundle.manifest.target)
    inside: list[str] = []
    converter = open_converter(target)
    plain = dict(
        zip(NETWORKS, open_networks(bundle, providers=providers, threads=threads), strict=True)
    )
    tapped = {}
    for name in NETWORKS:
        intermediates = bundle.manifest.network(name).intermediates
        tapped[f"{name}_intermediates"] = plain[name]
        if intermediates:
            source, label = bundle.source(name), f"{bundle.path}: {name}"
            more = converter.load(source, label, intermediates, providers, threads)
            tapped[f"{name}_intermediates"] = more
            inside += intermediates
    precision = find_precision(target, bundle.manifest.precision)
    verified = bundle.manifest.parity or {}
    is_accepted = verified.get("tolerance") == FLOOR.to_json()  # see judge
    return Artefact(
        **plain,
        **tapped,
        intermediates=frozenset(inside),
        runtime_name=converter.runtime_name(),
        precision=precision.name,
        tolerance=FLOOR if is_accepted else precision.tolerance,
    )


def open_networks(
    bundle: Bundle, *, providers: Providers = "cpu", threads: int | None = None
) -> tuple[Call, Call]:
    """Returns the encoder and the decoder of a bundle, run by what the target has on this machine.

    Unlike the runtime's ``open_network`` it runs Core ML anywhere, by the interpreter.

    Raises:
        IntegrityError, BundleError: a file cannot be read or run.
        ProviderError: a provider is missing here.
    """
    converter = open_converter(find_target(bundle.manifest.target))
    encoder, decoder = (
        converter.load(
            bundle.source(name), f"{bundle.path}: {name}", providers=providers, threads=threads
        )
        for name in NETWORKS
    )
    return encoder, decoder
