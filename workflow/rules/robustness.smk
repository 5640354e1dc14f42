"""Robustness: pixels, labels, folds, encoder → metrics under a change of stain."""

CONDA = "../envs/reading.yaml"


rule robustness:
    input:
        unpack(PLAN.inputs("robustness", "encoder")),
    output:
        directory(PATHS.robustness("{encoder}")),
    log:
        LOGS / "robustness/{encoder}.log",
    benchmark:
        TIMES / "robustness/{encoder}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu=1,
    params:
        config=config_file,
        job=PLAN.param("robustness", "encoder"),
    shell:
        "logged {log:q} stainssl robustness --config {params.config:q} --encoder {wildcards.encoder}"
        " --threads {threads}"
