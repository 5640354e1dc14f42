"""Tissue and tiles: slides of a part → tiles, qc, previews; statuses and gate of the cohort."""

CONDA = "../envs/reading.yaml"


rule tile:
    input:
        unpack(PLAN.inputs("tile", "cohort", "part")),
    output:
        tiles=PATHS.tiles("{cohort}", "{part}"),
        qc=PATHS.qc("{cohort}", "{part}"),
        previews=directory(PATHS.previews("{cohort}", "{part}")),
    log:
        LOGS / "tile/{cohort}/{tiling}/{part}.log",
    benchmark:
        TIMES / "tile/{cohort}/{tiling}/{part}.tsv"
    priority: 1
    conda:
        CONDA
    threads: lambda wildcards: PLAN.threads(wildcards.cohort, workflow.cores)
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        config=config_file,
        job=PLAN.param("tile", "cohort", "part"),
    shell:
        "logged {log:q} stainssl tile --config {params.config:q} --cohort {wildcards.cohort}"
        " --part {wildcards.part} --threads {threads}"


rule statuses:
    input:
        unpack(PLAN.inputs("statuses", "cohort")),
    output:
        table=PATHS.slide_statuses("{cohort}"),
        page=report(
            PATHS.slides_page("{cohort}"),
            caption="../report/slides.rst",
            category="Slides",
            labels={"cohort": "{cohort}", "shows": "status of each slide"},
        ),
        overview=report(
            PATHS.overview("{cohort}"),
            caption="../report/tissue.rst",
            category="Slides",
            labels={"cohort": "{cohort}", "shows": "tissue masks"},
        ),
    log:
        LOGS / "statuses/{cohort}/{tiling}.log",
    benchmark:
        TIMES / "statuses/{cohort}/{tiling}.tsv"
    priority: 2
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=30,
    params:
        config=config_file,
        job=PLAN.param("statuses", "cohort"),
    shell:
        "logged {log:q} stainssl cohort statuses --config {params.config:q} --cohort {wildcards.cohort}"


# Separate from `statuses`, because Snakemake removes the outputs of a failed job and the statuses
# are needed then. Its file is not an input of `pixels`: Snakemake would not check the jobs behind a
# gate that runs again. It stops the run by failing, as soon as all slides are tiled (priority).
rule gate:
    input:
        unpack(PLAN.inputs("gate", "cohort")),
    output:
        PATHS.gate("{cohort}"),
    log:
        LOGS / "gate/{cohort}/{tiling}.log",
    benchmark:
        TIMES / "gate/{cohort}/{tiling}.tsv"
    priority: 2
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=10,
    params:
        config=config_file,
        job=PLAN.param("gate", "cohort"),
    shell:
        "logged {log:q} stainssl cohort gate --config {params.config:q} --cohort {wildcards.cohort}"
