"""Embeddings: pixels, encoder → vectors of a part."""


rule embed:
    input:
        pixels=embedded_pixels,
        tiles=embedded_tiles,
        model=model_of,
    output:
        directory(PATHS.embeddings("{cohort}", "{tiling}", "{encoder}", "{part}")),
    log:
        LOGS / "embed/{cohort}/{tiling}/{encoder}/{part}.log",
    benchmark:
        TIMES / "embed/{cohort}/{tiling}/{encoder}/{part}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=1,
    params:
        config=RESOLVED,
        weights=weights_of,
    shell:
        "stainssl embed --config {params.config} --cohort {wildcards.cohort}"
        " --part {wildcards.part} --encoder {wildcards.encoder}"
        " --threads {threads} 2>&1 | tee {log}"


rule embedded:
    input:
        embeddings=embeddings_of_cohort,
        tiles=tiles_of_cohort,
    output:
        slides=report(
            PATHS.embedded("{cohort}", "{tiling}", "{encoder}"),
            caption="../report/embedded.rst",
            category="Slides",
            labels={
                "cohort": "{cohort}",
                "shows": "tiles with a vector of {encoder}",
            },
        ),
    log:
        LOGS / "embedded/{cohort}/{tiling}/{encoder}.log",
    benchmark:
        TIMES / "embedded/{cohort}/{tiling}/{encoder}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=30,
    params:
        config=RESOLVED,
    shell:
        "stainssl cohort embedded --config {params.config} --cohort {wildcards.cohort}"
        " --encoder {wildcards.encoder} 2>&1 | tee {log}"
