"""Slides in, benchmark table out."""

from snakemake.utils import min_version

min_version("9.27")


if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/demo.smk"
include: "workflow/rules/tile.smk"
include: "workflow/rules/label.smk"
include: "workflow/rules/pixels.smk"
include: "workflow/rules/target.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/folds.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/mil.smk"
include: "workflow/rules/robustness.smk"
include: "workflow/rules/benchmark.smk"


rule all:
    default_target: True
    input:
        wanted_files(),
