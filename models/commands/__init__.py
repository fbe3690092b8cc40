"""The commands of training: distill, evaluate."""

from pocketsam.models.commands.distill import add_distill
from pocketsam.models.commands.evaluate import add_evaluate

COMMANDS = (add_distill, add_evaluate)
