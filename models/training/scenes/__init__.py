"""Generated scenes, whose objects' masks are known."""

from pocketsam.models.training.scenes.scene import MIN_AREA as MIN_AREA
from pocketsam.models.training.scenes.scene import Scene as Scene
from pocketsam.models.training.scenes.scene import generate as generate
