"""Providers by name, ``NAME`` or ``NAME:KEY=VALUE,…``: what runs a network, and how it computes."""

from collections.abc import Sequence

from pocketsam.errors import ProviderError

Providers = str | Sequence[str]
"""A provider, or several, the best first, such as ``cpu``, ``cuda:device_id=1`` or ``openvino``."""

OPENVINO = "openvino"
AUTO = "auto"
ALONE = (OPENVINO, AUTO)
"""Providers beside which no other can stand, and that run bundles only."""
ARITHMETICS = ("f32", "bf16", "f16")
"""Values of the option ``precision``: the number format that an encoder is computed in."""


def list_providers(providers: Providers) -> list[str]:
    """Returns providers as a list.

    Raises:
        ProviderError: something else than names.
    """
    found = providers if isinstance(providers, list | tuple) else [providers]
    for name in found:
        if not isinstance(name, str):
            raise ProviderError(f"providers are names such as 'cpu', not {name!r}")
    return list(found)


def split_provider(provider: str) -> tuple[str, dict[str, str]]:
    """Returns a provider's name as it is written, and its options by key.

    Raises:
        ProviderError: an option that is not KEY=VALUE.
    """
    name, _, text = provider.partition(":")
    options = {}
    for entry in text.split(",") if text else []:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise ProviderError(f"{provider!r}: options are KEY=VALUE, separated by commas")
        options[key] = value
    return name, options


def is_provider(providers: Providers, name: str) -> bool:
    """Returns whether the first provider has a name, in any case.

    Args:
        providers: with options or without.
        name: in lower case.
    """
    first = next(iter(list_providers(providers)), "")
    return first.partition(":")[0].lower() == name


def read_arithmetic(providers: Providers, allowed: Sequence[str] = ARITHMETICS) -> str:
    """Returns the number format that a provider computes the encoder in; ``f32`` if it does not say.

    Args:
        providers: a single one, ``NAME`` or ``NAME:precision=…``.
        allowed: the formats that the provider has.

    Raises:
        ProviderError: several providers, another option, or another format.
    """
    wanted = list_providers(providers)
    name, options = split_provider(wanted[0])
    if len(wanted) > 1:
        raise ProviderError(f"{name} runs alone, without {', '.join(map(str, wanted[1:]))}")
    value = options.pop("precision", "f32")
    if options:
        raise ProviderError(f"{name} has the option precision, not {', '.join(options)}")
    if value not in allowed:
        raise ProviderError(f"{name} computes in {' or '.join(allowed)}, not {value}")
    return value


def find_arithmetic(providers: Providers) -> str:
    """Returns the number format that providers ask for, whatever runs them: one of ``ARITHMETICS``."""
    for provider in list_providers(providers)[:1]:
        value = split_provider(provider)[1].get("precision", "f32")
        return value if value in ARITHMETICS else "f32"
    return "f32"
