"""Figures: one function per figure, from data to a matplotlib figure."""

import matplotlib

matplotlib.rcParams["text.parse_math"] = False  # names are not formulas, even a site `$2`
