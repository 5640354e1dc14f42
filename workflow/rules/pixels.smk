"""Pixels: slides, tiles → encoded tiles of a part and their stain profiles."""

CONDA = "../envs/reading.yaml"


STORE = directory(PATHS.pixels("{cohort}", "{part}"))
if not PLAN.config.slides.keep_pixels:
    STORE = temp(STORE)  # removed after the last job that reads it


rule pixels:
    input:
        unpack(PLAN.inputs("pixels", "cohort", "part")),
    output:
        STORE,
    log:
        LOGS / "pixels/{cohort}/{tiling}/{part}.log",
    benchmark:
        TIMES / "pixels/{cohort}/{tiling}/{part}.tsv"
    conda:
        CONDA
    threads: lambda wildcards: PLAN.threads(wildcards.cohort, workflow.cores)
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        config=config_file,
        job=PLAN.param("pixels", "cohort", "part"),
    shell:
        "logged {log:q} stainssl pixels --config {params.config:q} --cohort {wildcards.cohort}"
        " --part {wildcards.part} --threads {threads}"
