"""Stain target: pixels of an encoder's training parts → target and its figure."""

CONDA = "../envs/reading.yaml"


rule target:
    input:
        unpack(PLAN.inputs("target", "encoder")),
    output:
        target=PATHS.target("{encoder}"),
        picture=report(
            PATHS.target_png("{encoder}"),
            caption="../report/target.rst",
            category="Encoders",
            labels={"encoder": "{encoder}", "shows": "stain space and target"},
        ),
    log:
        LOGS / "target/{encoder}.log",
    benchmark:
        TIMES / "target/{encoder}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=60,
    params:
        config=config_file,
        job=PLAN.param("target", "encoder"),
    shell:
        "logged {log:q} stainssl target --config {params.config:q} --encoder {wildcards.encoder}"
        " --threads {threads}"
