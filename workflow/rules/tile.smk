"""Tissue and tiles: slides of a part → tiles, qc, previews; then the cohort's statuses."""


rule tile:
    input:
        slides=slide_files,
        regions=region_files,
    output:
        tiles=PATHS.tiles("{cohort}", "{tiling}", "{part}"),
        qc=PATHS.qc("{cohort}", "{tiling}", "{part}"),
        previews=directory(PATHS.previews("{cohort}", "{tiling}", "{part}")),
    log:
        LOGS / "tile/{cohort}/{tiling}/{part}.log",
    benchmark:
        TIMES / "tile/{cohort}/{tiling}/{part}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        config=RESOLVED,
        rows=tile_rows,
        tiling=tiling_settings,
        reader=CONFIG.slides.reader,
    shell:
        "stainssl tile --config {params.config} --cohort {wildcards.cohort}"
        " --part {wildcards.part} --threads {threads} 2>&1 | tee {log}"


rule gate:
    input:
        qc=qc_of_cohort,
    output:
        slides=report(
            PATHS.checked("{cohort}", "{tiling}"),
            caption="../report/slides.rst",
            category="Slides",
            labels={"cohort": "{cohort}", "shows": "what happened to each slide"},
        ),
        overview=report(
            PATHS.overview("{cohort}", "{tiling}"),
            caption="../report/tissue.rst",
            category="Slides",
            labels={"cohort": "{cohort}", "shows": "tissue masks"},
        ),
    log:
        LOGS / "gate/{cohort}/{tiling}.log",
    benchmark:
        TIMES / "gate/{cohort}/{tiling}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=30,
    params:
        config=RESOLVED,
        max_bad_slides=CONFIG.slides.max_bad_slides,
    shell:
        "stainssl cohort gate --config {params.config} --cohort {wildcards.cohort} 2>&1 | tee {log}"
