#!/usr/bin/env bash
# tiatoolbox asks for opencv-python, which writes over the files of opencv-python-headless and needs a
# desktop's libraries. Snakemake runs this once the environment is made.
set -euo pipefail
headless=$(pip list --format freeze | grep '^opencv-python-headless==')
pip uninstall --yes opencv-python
pip install --force-reinstall --no-deps "$headless"
