"""MagCache's calibration: by how much the transformer's residual changes from step to step, per model row. Pure data.

The magnitude ratio of a step is the mean over tokens of |residual| / |residual of the step before|, where the residual
is what all blocks together add to their input (MagCache, arXiv:2506.09045). Where ratios stay near 1, the residual of
an earlier step may stand for the next. Figures of the Wan2.2 rows: the authors' own calibration and settings
(Zehong-Ma/MagCache, MagCache4Wan2.2/magcache_generate.py and README.md), the pass of the prompt, per expert; the first
step of an expert has nothing to compare with and is 1. `python -m engine.calibrate` measures those of other weights.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Magnitudes:
    """What MagCache must know of one model."""

    ratios: tuple[tuple[float, ...], ...]
    """Per expert, the high-noise one first: one ratio per step of the calibration."""
    retention: tuple[float, ...]
    """Per expert: the share of its steps, from the first on, that are computed whatever the ratios say."""
    threshold: float = 0.06
    """Most error that may add up over neighbouring reused steps; an error is how far the ratios' product is from 1."""
    max_reused: int = 2
    """Most neighbouring steps that reuse one residual."""


# fmt: off
WAN_T2V_A14B = Magnitudes(
    ratios=(
        (
            1.0, 1.00124, 0.99822, 0.99696, 0.99703, 0.9966, 0.99602, 0.99578, 0.99484, 0.99633, 0.99659, 0.99534,
            0.99584, 0.99681, 0.99563, 0.9944, 0.99594, 0.99466, 0.99453, 0.99389, 0.99391, 0.99354, 0.99283, 0.99268,
            0.99057, 0.99125,
        ),
        (
            1.0, 0.98808, 0.98765, 0.9851, 0.98311, 0.9805, 0.97776, 0.97278, 0.96731, 0.95857, 0.94385, 0.92118,
            0.88108, 0.80263,
        ),
    ),
    retention=(0.4, 0.4),
)
WAN_I2V_A14B = Magnitudes(
    ratios=(
        (
            1.0, 0.99191, 0.99356, 0.99326, 0.99251, 0.99393, 0.9943, 0.99276, 0.99389, 0.99274, 0.99316, 0.99379,
            0.99268, 0.99222, 0.99175,
        ),
        (
            1.0, 0.98931, 0.99087, 0.98852, 0.98895, 0.98806, 0.9871, 0.98613, 0.98434, 0.983, 0.98185, 0.98131, 0.9783,
            0.97619, 0.97264, 0.97088, 0.96568, 0.96045, 0.95322, 0.94579, 0.93297, 0.91699, 0.89174, 0.8541, 0.79823,
        ),
    ),
    retention=(1.0, 0.1),
)
# Of a video from text; from an image the authors measured ratios within 0.014 of these.
WAN_TI2V_5B = Magnitudes(
    ratios=(
        (
            1.0, 0.99505, 0.99441, 0.99558, 0.99499, 0.99534, 0.99468, 0.99463, 0.9946, 0.99408, 0.9945, 0.99409,
            0.99403, 0.99382, 0.99349, 0.99377, 0.9933, 0.99303, 0.99217, 0.992, 0.99201, 0.99133, 0.99112, 0.99155,
            0.98958, 0.98959, 0.98838, 0.98826, 0.9883, 0.98711, 0.98562, 0.98511, 0.98414, 0.98284, 0.98104, 0.97981,
            0.97849, 0.97557, 0.97398, 0.97171, 0.96917, 0.96511, 0.96263, 0.95839, 0.95483, 0.94942, 0.9468, 0.94583,
            0.94843, 0.96949,
        ),
    ),
    retention=(0.2,),
)
# Of random weights: measured with a request of 20 steps and the prompt "a cat walks on the beach".
TINY_T2V = Magnitudes(
    ratios=(
        (1.0, 0.99861, 1.00011, 1.00103, 0.9953, 1.00303, 0.99992, 0.99893, 1.00066),
        (1.0, 1.00698, 1.00143, 1.00248, 1.01019, 0.98194, 1.00952, 1.00482, 0.99752, 1.00744, 1.00827),
    ),
    retention=(0.2, 0.2),
)
TINY_TI2V = Magnitudes(
    ratios=(
        (
            1.0, 1.00094, 1.00018, 0.98438, 0.99383, 1.01601, 0.9976, 1.00032, 0.99212, 1.01797, 0.98666, 1.00285,
            0.99369, 1.00208, 1.00809, 1.00206, 1.02491, 0.98603, 1.0015, 1.00079,
        ),
    ),
    retention=(0.2,),
)
# fmt: on
