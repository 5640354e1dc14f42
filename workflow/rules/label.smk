"""Tile labels: tiles, and annotations or the sheet → labels of a part."""

CONDA = "../envs/statistics.yaml"


rule label:
    input:
        unpack(PLAN.inputs("label", "cohort", "part")),
    output:
        PATHS.labels("{cohort}", "{part}"),
    log:
        LOGS / "label/{cohort}/{tiling}/{part}.log",
    benchmark:
        TIMES / "label/{cohort}/{tiling}/{part}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=30,
    params:
        config=config_file,
        job=PLAN.param("label", "cohort", "part"),
    shell:
        "logged {log:q} stainssl label --config {params.config:q} --cohort {wildcards.cohort}"
        " --part {wildcards.part}"
