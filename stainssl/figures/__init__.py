"""Every picture: one function a figure, data in, matplotlib figure out."""

import matplotlib

matplotlib.rcParams["text.parse_math"] = False  # a site may be named `$2`; names are no formulas
