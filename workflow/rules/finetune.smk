"""Tile tasks: pixels, labels, folds, network → predictions and metrics after fine-tuning."""

CONDA = "../envs/training.yaml"


rule finetune:
    input:
        unpack(PLAN.inputs("finetune", "task", "encoder")),
    output:
        directory(PATHS.fine_tuned("{task}", "{encoder}")),
    log:
        LOGS / "finetune/{task}/{encoder}.log",
    benchmark:
        TIMES / "finetune/{task}/{encoder}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 1440 * attempt,
        gpu=1,
    params:
        config=config_file,
        job=PLAN.param("finetune", "task", "encoder"),
    shell:
        "logged {log:q} stainssl finetune --config {params.config:q} --task {wildcards.task}"
        " --encoder {wildcards.encoder} --threads {threads}"
