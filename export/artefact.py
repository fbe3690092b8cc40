"""Opens a bundle's files for comparison with PyTorch, whatever their target."""

from pocketsam.export.target import Call
from pocketsam.export.targets import find_precision, find_target, open_converter
from pocketsam.export.verification.parity import Artefact
from pocketsam.export.verification.tolerances import FLOOR
from pocketsam.runtime.backends.providers import OPENVINO, Providers, find_arithmetic, is_provider
from pocketsam.runtime.bundle import NETWORKS, Bundle
from pocketsam.runtime.machine import package_version
from pocketsam.runtime.verification.golden import ARITHMETIC


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
        if intermediates and not is_provider(providers, OPENVINO):
            source, label = bundle.source(name), f"{bundle.path}: {name}"
            more = converter.load(source, label, intermediates, providers, threads)
            tapped[f"{name}_intermediates"] = more
            inside += intermediates
    precision = find_precision(target, bundle.manifest.precision)
    verified = bundle.manifest.parity or {}
    arithmetic = find_arithmetic(providers)
    is_accepted = verified.get("tolerance") == FLOOR.to_json()  # see judge
    tolerance = FLOOR if is_accepted else precision.tolerance
    return Artefact(
        **plain,
        **tapped,
        intermediates=frozenset(inside),
        runtime_name=_runtime_name(converter.runtime_name(), providers),
        precision=precision.name,
        tolerance=tolerance if arithmetic == "f32" else tolerance.or_looser(ARITHMETIC),
    )


def _runtime_name(name: str, providers: Providers) -> str:
    """Returns the name of what runs the files, with OpenVINO if it runs the encoder."""
    if not is_provider(providers, OPENVINO):
        return name
    return f"OpenVINO {package_version('openvino')} in {find_arithmetic(providers)}, {name}"


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
