#!/usr/bin/env bash
# Run by Snakemake after creating the environment. tiatoolbox requires opencv-python, which overwrites the
# files of opencv-python-headless and needs the libraries of a desktop.
set -euo pipefail
headless=$(pip list --format freeze | grep '^opencv-python-headless==')
pip uninstall --yes opencv-python
pip install --force-reinstall --no-deps "$headless"
