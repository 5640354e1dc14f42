"""Pretraining: pixels, target → model, metrics, patients seen, curves."""

CONDA = "../envs/training.yaml"


rule pretrain:
    input:
        unpack(PLAN.inputs("pretrain", "encoder")),
    output:
        model=directory(PATHS.model("{encoder}")),
        metrics=PATHS.metrics("{encoder}"),
        seen=PATHS.seen("{encoder}"),
        curves=report(
            PATHS.curves("{encoder}"),
            caption="../report/curves.rst",
            category="Encoders",
            labels={"encoder": "{encoder}", "shows": "pretraining"},
        ),
    log:
        LOGS / "pretrain/{encoder}.log",
    benchmark:
        TIMES / "pretrain/{encoder}.tsv"
    wildcard_constraints:
        encoder=PLAN.trainable(),
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 1440 * attempt,
        gpu=1,
    params:
        config=config_file,
        job=PLAN.param("pretrain", "encoder"),
    shell:
        "logged {log:q} stainssl pretrain --config {params.config:q} --encoder {wildcards.encoder}"
        " --threads {threads} --gpus {resources.gpu}"
