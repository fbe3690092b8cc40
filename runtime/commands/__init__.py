"""The commands that run a bundle, a file each. They need neither torch nor the exporter.

``verify`` is not in ``COMMANDS``: the exporter adds ``--checkpoint`` to it.
"""

from pocketsam.runtime.commands.bench import add_bench
from pocketsam.runtime.commands.compare import add_compare
from pocketsam.runtime.commands.demo import add_demo
from pocketsam.runtime.commands.embed import add_embed
from pocketsam.runtime.commands.everything import add_everything
from pocketsam.runtime.commands.info import add_info
from pocketsam.runtime.commands.roofline import add_roofline
from pocketsam.runtime.commands.segment import add_segment
from pocketsam.terminal import AddCommand

COMMANDS: tuple[AddCommand, ...] = (
    add_info,
    add_demo,
    add_segment,
    add_everything,
    add_embed,
    add_compare,
    add_bench,
    add_roofline,
)
"""In the order in which ``pocketsam --help`` lists them."""
