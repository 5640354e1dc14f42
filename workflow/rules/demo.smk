"""Synthetic cohort: seed → slides, sheet, ground-truth polygons."""

CONDA = "../envs/reading.yaml"

if PLAN.demo_files()["slides"]:

    rule demo:
        output:
            **PLAN.demo_files(),
        log:
            LOGS / "demo.log",
        benchmark:
            TIMES / "demo.tsv"
        conda:
            CONDA
        threads: 2
        resources:
            mem_mb=lambda wildcards, attempt: 3000 * attempt,
            runtime=30,
        params:
            config=config_file,
            job=PLAN.param("demo"),
        shell:
            "logged {log:q} stainssl demo --config {params.config:q} --threads {threads}"
