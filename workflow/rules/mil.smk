"""Slide and patient tasks: embeddings, folds → predictions, metrics, models, attention."""

CONDA = "../envs/reading.yaml"


rule mil:
    input:
        unpack(PLAN.inputs("mil", "task", "encoder", "head")),
    output:
        directory(PATHS.mil("{task}", "{encoder}", "{head}")),
    log:
        LOGS / "mil/{task}/{encoder}/{head}.log",
    benchmark:
        TIMES / "mil/{task}/{encoder}/{head}.tsv"
    wildcard_constraints:
        head=any_of(PLAN.config.heads),
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        config=config_file,
        job=PLAN.param("mil", "task", "encoder", "head"),
    shell:
        "logged {log:q} stainssl mil --config {params.config:q} --task {wildcards.task}"
        " --encoder {wildcards.encoder} --head {wildcards.head}"
        " --threads {threads}"
