"""What a training on photographs does, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Canvas:
    """What a process computes in a step.

    Attributes:
        size: side of the canvas in pixels, a multiple of 32.
        views: number of views of photographs.
        prompts: number of prompts on each.
    """

    size: int
    views: int
    prompts: int


@dataclass(frozen=True)
class PhotoRecipe:
    """What a training on photographs does.

    Attributes:
        first: canvases that take turns at the beginning: mostly 448, where TinyViT's windows need no
            padding, so that a step takes less time.
        then: canvases that take turns afterwards, of the sizes that the weights are for.
        change: share of the time after which ``then`` follows ``first``.
        learning_rate: the highest, after the warm-up.
        warmup: share of the time in which the learning rate rises.
        weight_decay: AdamW's, for everything but biases, norms and tables.
        ema: decay of the averaged weights.
        imitation: weight of the imitation's loss at the beginning; at the end it is 0.
        labelled: share of the views for photographs with masks.
        last: share of the time after which ``labelled_last`` takes its place: what people draw decides
            which of several answers is the first, and is learnt last.
        labelled_last: see ``last``.
        seed: of the views and the random numbers.
    """

    first: tuple[Canvas, ...] = (Canvas(448, 1, 10), Canvas(448, 1, 10), Canvas(512, 1, 10))
    then: tuple[Canvas, ...] = (Canvas(512, 1, 10),)
    change: float = 0.5
    learning_rate: float = 6e-5
    warmup: float = 0.03
    weight_decay: float = 0.02
    ema: float = 0.998
    imitation: float = 0.5
    labelled: float = 0.5
    last: float = 0.7
    labelled_last: float = 0.6
    seed: int = 0

    def canvas(self, turn: int, share: float) -> Canvas:
        """Returns the canvas whose turn it is, after a share of the time."""
        turns = self.first if share < self.change else self.then
        return turns[turn % len(turns)]
