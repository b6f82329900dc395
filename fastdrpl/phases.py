"""One schedule over two stages, the second of which starts from the weights of the first."""

from fastdrpl.settings import Schedule


def split_schedule(whole: Schedule, epochs: int) -> tuple[Schedule, Schedule]:
    """The schedule up to epoch `epochs`, and what is left of it: one epoch at least.

    A milestone that has passed is one of the first epoch in the second. So both stages can have the same optimiser,
    whose momentum then goes on too.
    """
    first = Schedule(epochs=epochs, milestones=tuple(m for m in whole.milestones if m <= epochs))
    left = tuple(max(1, milestone - epochs) for milestone in whole.milestones)
    return first, Schedule(epochs=max(1, whole.epochs - epochs), milestones=left)
