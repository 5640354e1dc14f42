"""Tile labels: tiles and annotations, or the sheet → labels of a part."""


rule label:
    input:
        tiles=PATHS.tiles("{cohort}", "{tiling}", "{part}"),
        annotations=annotation_files,
    output:
        PATHS.labels("{cohort}", "{tiling}", "{part}"),
    log:
        LOGS / "label/{cohort}/{tiling}/{part}.log",
    benchmark:
        TIMES / "label/{cohort}/{tiling}/{part}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=30,
    params:
        config=RESOLVED,
        labels=label_rows,
    shell:
        "stainssl label --config {params.config} --cohort {wildcards.cohort}"
        " --part {wildcards.part} 2>&1 | tee {log}"
