"""Tile tasks: embeddings, labels, folds → predictions and metrics of a linear probe."""

CONDA = "../envs/statistics.yaml"


rule probe:
    input:
        unpack(PLAN.inputs("probe", "task", "encoder")),
    output:
        directory(PATHS.probe("{task}", "{encoder}")),
    log:
        LOGS / "probe/{task}/{encoder}.log",
    benchmark:
        TIMES / "probe/{task}/{encoder}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        config=config_file,
        job=PLAN.param("probe", "task", "encoder"),
    shell:
        "logged {log:q} stainssl probe --config {params.config:q} --task {wildcards.task}"
        " --encoder {wildcards.encoder} --threads {threads}"
