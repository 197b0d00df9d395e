"""Bands of the generated sensors, and what each surface material reflects and scatters.

Reflectances are round typical values for the twelve Sentinel-2 L2A bands, in 1e-4; backscatter is sigma-nought in dB
at C band. Every material has two states between which `green` in [0, 1] blends: for vegetation, bare or dry and
fully green; for water, clear and turbid; the same twice where nothing grows.
"""

from __future__ import annotations

import numpy as np

from data_prep.source import Band

S2_BANDS = (
    Band("B01", 442.7, 21),
    Band("B02", 492.4, 66),
    Band("B03", 559.8, 36),
    Band("B04", 664.6, 31),
    Band("B05", 704.1, 15),
    Band("B06", 740.5, 15),
    Band("B07", 782.8, 20),
    Band("B08", 832.8, 106),
    Band("B8A", 864.7, 21),
    Band("B09", 945.1, 20),
    Band("B11", 1613.7, 91),
    Band("B12", 2202.4, 175),
)
"""Centre and width of Sentinel-2A's MSI, nm (Copernicus Sentinel-2 spectral responses); L2A has no B10."""
S2_RESOLUTION_M = np.array([60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20])
S1_BANDS = (Band("VV", 55465763.0, None), Band("VH", 55465763.0, None))
"""C band, 5.405 GHz."""
NAIP_BANDS = (
    Band("red", 640.0, 60),
    Band("green", 560.0, 70),
    Band("blue", 460.0, 70),
    Band("nir", 850.0, 110),
)
NAIP_FROM_S2 = (3, 2, 1, 7)
"""The Sentinel-2 band whose reflectance stands for each aerial band."""
RGB_BANDS = (S2_BANDS[3], S2_BANDS[2], S2_BANDS[1])

_SPECTRA = {
    #                B01   B02   B03   B04   B05   B06   B07   B08   B8A   B09   B11   B12
    "broadleaf": (250, 300, 560, 320, 900, 2700, 3400, 3600, 3800, 3900, 1900, 900),
    "twigs": (400, 450, 600, 750, 950, 1150, 1300, 1450, 1600, 1700, 1900, 1400),
    "conifer": (200, 230, 380, 260, 600, 1500, 1900, 2050, 2200, 2300, 1000, 480),
    "conifer dull": (220, 250, 360, 320, 600, 1150, 1400, 1500, 1650, 1700, 1050, 600),
    "meadow": (350, 420, 780, 500, 1250, 2900, 3500, 3750, 3950, 4000, 2300, 1250),
    "straw": (600, 800, 1150, 1400, 1750, 2100, 2350, 2500, 2650, 2700, 3400, 2500),
    "cereal": (300, 360, 700, 380, 1100, 3200, 4000, 4300, 4500, 4500, 2000, 1000),
    "maize": (280, 340, 680, 360, 1050, 3100, 4000, 4300, 4450, 4500, 1900, 900),
    "blossom": (400, 500, 1300, 1150, 1700, 3000, 3600, 3900, 4100, 4100, 2200, 1150),
    "soil": (600, 750, 1050, 1400, 1700, 1900, 2050, 2200, 2350, 2450, 2900, 2500),
    "wet soil": (450, 520, 700, 900, 1050, 1200, 1300, 1400, 1500, 1550, 1900, 1600),
    "sand": (1300, 1650, 2150, 2600, 2850, 3000, 3100, 3200, 3350, 3400, 4000, 3700),
    "rock": (900, 1050, 1300, 1500, 1650, 1750, 1850, 1900, 1950, 2000, 2300, 2100),
    "asphalt": (750, 800, 880, 950, 1000, 1050, 1100, 1150, 1200, 1250, 1400, 1350),
    "concrete": (1450, 1650, 1900, 2050, 2150, 2200, 2250, 2300, 2350, 2350, 2600, 2500),
    "tile": (700, 800, 1050, 1900, 2200, 2350, 2450, 2550, 2650, 2700, 3000, 2700),
    "slate": (600, 650, 720, 780, 820, 860, 900, 950, 1000, 1050, 1200, 1150),
    "metal": (2400, 2800, 3000, 3100, 3150, 3200, 3200, 3250, 3250, 3200, 3300, 3100),
    "clear water": (480, 420, 330, 190, 150, 120, 110, 90, 80, 70, 40, 30),
    "turbid water": (700, 800, 1000, 800, 650, 400, 360, 300, 260, 220, 100, 70),
}

_DB = tuple[float, float]
_MATERIALS: dict[str, tuple[str, str, _DB, _DB]] = {
    # name:       state at green 0, at green 1,     VV, VH in dB at 0,  at 1
    "water": ("clear water", "turbid water", (-19.5, -27.5), (-18.0, -26.5)),
    "broadleaf": ("twigs", "broadleaf", (-9.8, -16.2), (-8.7, -13.8)),
    "conifer": ("conifer dull", "conifer", (-9.3, -15.4), (-8.8, -14.4)),
    "grass": ("straw", "meadow", (-13.0, -20.5), (-12.0, -18.5)),
    "cereal": ("soil", "cereal", (-11.5, -19.5), (-14.5, -20.0)),
    "maize": ("soil", "maize", (-11.0, -19.0), (-9.0, -14.5)),
    "rape": ("soil", "cereal", (-11.0, -19.0), (-9.5, -13.5)),
    "rape in flower": ("soil", "blossom", (-11.0, -19.0), (-9.5, -13.5)),
    "stubble": ("straw", "meadow", (-11.5, -19.5), (-12.0, -18.5)),
    "soil": ("soil", "soil", (-10.8, -18.8), (-10.8, -18.8)),
    "shore": ("wet soil", "meadow", (-13.0, -20.5), (-11.5, -18.0)),
    "sand": ("sand", "straw", (-17.5, -26.0), (-15.0, -23.0)),
    "rock": ("rock", "straw", (-9.8, -17.5), (-11.0, -18.5)),
    "asphalt": ("asphalt", "asphalt", (-15.5, -24.0), (-15.5, -24.0)),
    "concrete": ("concrete", "concrete", (-12.0, -21.0), (-12.0, -21.0)),
    "tile roof": ("tile", "tile", (-2.5, -10.5), (-2.5, -10.5)),
    "slate roof": ("slate", "slate", (-3.5, -11.5), (-3.5, -11.5)),
    "metal roof": ("metal", "metal", (0.5, -8.5), (0.5, -8.5)),
}

MATERIALS = tuple(_MATERIALS)
M = {name: index for index, name in enumerate(MATERIALS)}
"""Number of a material by name."""
REFLECTANCE = np.array(
    [[_SPECTRA[row[0]] for row in _MATERIALS.values()], [_SPECTRA[row[1]] for row in _MATERIALS.values()]], np.float32
) / np.float32(1e4)
"""[state, material, S2 band], as a fraction."""
BACKSCATTER = (
    10.0 ** (np.array([[row[2] for row in _MATERIALS.values()], [row[3] for row in _MATERIALS.values()]]) / 10)
).astype(np.float32)
"""[state, material, VV and VH], linear power."""
