"""OpenCV's polynomial-expansion flow: needs no weights."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from fitkit.observe.flow.types import Flow, check_images, flow_of_arrays, grey

CONTRAST = 256.0  # standard deviation it is given: its constant regularization then hardly shortens the flow
FLATTEST = 1e-3  # standard deviation of images in [0, 1] that is not raised further


@dataclass(frozen=True)
class FarnebackFlow:
    """Farneback, "Two-frame motion estimation based on polynomial expansion", SCIA 2003, as in OpenCV. On the
    CPU, grey.

    levels: pyramid levels, each half the size of the one below; window: side in px over which the
    displacement is averaged; iterations: on each level; neighborhood, sigma: side in px of the polynomial's
    support and its Gaussian's deviation.
    Both images are brought to a fixed common mean and contrast, so a gain or offset common to both leaves the
    flow; a different brightness of one image does not.
    """

    levels: int = 5
    window: int = 15
    iterations: int = 5
    neighborhood: int = 7
    sigma: float = 1.5
    name = "farneback"

    def estimate(self, source: Tensor, target: Tensor) -> Flow:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> Flow; all pixels valid (consistency is the caller's
        test)."""
        check_images(self.name, source, target)
        return flow_of_arrays([self._flow(a, b) for a, b in zip(grey(source), grey(target))], source)

    def _flow(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """source, target [H, W] -> [H, W, 2] px."""
        gain = CONTRAST / max(float(np.sqrt((source.var() + target.var()) / 2)), FLATTEST)
        mean = (source.mean() + target.mean()) / 2
        # OpenCV takes the last row and column of the target for unseen, which bends the flow nearby: they go
        # into a margin.
        m = self.window
        wide = [
            cv2.copyMakeBorder((image - mean) * gain, m, m, m, m, cv2.BORDER_REPLICATE)
            for image in (source, target)
        ]
        flow = cv2.calcOpticalFlowFarneback(
            *wide,
            None,
            0.5,
            self.levels,
            self.window,
            self.iterations,
            self.neighborhood,
            self.sigma,
            cv2.OPTFLOW_FARNEBACK_GAUSSIAN,
        )
        return np.ascontiguousarray(flow[m:-m, m:-m])
