"""Folds: sheets → training, validation and test patients of a task."""

CONDA = "../envs/statistics.yaml"


rule folds:
    output:
        PATHS.folds("{task}"),
    log:
        LOGS / "folds/{task}.log",
    benchmark:
        TIMES / "folds/{task}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=10,
    params:
        config=config_file,
        job=PLAN.param("folds", "task"),
    shell:
        "logged {log:q} stainssl folds --config {params.config:q} --task {wildcards.task}"
