"""The views that each step of a training on photographs sees."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pocketsam.models.training.photographs.photo import TrainingPhoto, draw_weights
from pocketsam.models.training.photographs.recipe import PhotoRecipe
from pocketsam.models.training.photographs.views import draw_view, stack_views


class Batches(Dataset[list[Tensor]]):
    """The views of each step, which follow from the seed, the step and the time.

    Args:
        photos: to draw from.
        recipe: the training.
        rank: number of the replica; each draws its own views.
        share: ``[1]``, share of the time that is spent; shared with the trainer, who sets it.
    """

    def __init__(
        self, photos: Sequence[TrainingPhoto], recipe: PhotoRecipe, rank: int, share: Tensor
    ) -> None:
        self.photos, self.recipe, self.rank, self.share = photos, recipe, rank, share
        self.weights = draw_weights(photos, recipe.labelled)
        self.weights_last = draw_weights(photos, recipe.labelled_last)

    def __getitem__(self, step: int) -> list[Tensor]:
        """Returns the fields of ``View``, stacked over the views of a step."""
        share = self.share.item()
        canvas = self.recipe.canvas(step + self.rank, share)
        weights = self.weights if share < self.recipe.last else self.weights_last
        rng = np.random.default_rng((self.recipe.seed, step, self.rank))
        chosen = rng.choice(len(self.photos), canvas.views, p=weights)
        return stack_views(
            [draw_view(self.photos[i], canvas.size, canvas.prompts, rng) for i in chosen]
        )
