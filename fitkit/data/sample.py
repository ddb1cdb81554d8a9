"""What a data set for training gives: one person or one moment of a person, with everything that is known to be true of it."""
from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch.utils.data import Dataset

from fitkit.observe.labels import Labels
from fitkit.observe.observations import Observations


@dataclass(frozen=True)
class Sample:
    """id: unique within its data set, begins with the person ('anna/smile'); observations: of B views of one person, with `labels`
    where something is known; views: names of the B views, or empty: they are told apart by the yaw of the head."""

    id: str
    observations: Observations
    views: tuple[str, ...] = ()

    @property
    def truth(self) -> Labels | None:
        return self.observations.labels


class FaceDataset(Dataset):
    """Samples by number. A file that cannot be used raises InputError, which names it, when its sample is read.

    name: of the data set, for logs; ids: of all samples, in order.
    """

    name: str
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        ...

    def person(self, index: int) -> str:
        """Who sample `index` shows; all samples of a person go to the same part of a data set."""
        return self.ids[index].partition("/")[0]
