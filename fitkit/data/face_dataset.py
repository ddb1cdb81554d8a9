"""What every training set of faces gives: observations of one person, and what is known to be true of
them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch.utils.data import Dataset

from fitkit.observe.labels import Labels
from fitkit.observe.observations import Observations


@dataclass(frozen=True)
class Sample:
    """id: unique in its data set; observations: B views of one person; truth: the observations' labels, None
    where nothing is known."""

    id: str
    observations: Observations
    truth: Labels | None = None


class FaceDataset(Dataset, ABC):
    """Samples by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...
