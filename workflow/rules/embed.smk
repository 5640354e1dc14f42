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


# Given encoders of a cohort read it together. What they embed is a reading's for good: an encoder
# that comes later, or gets other weights, reads the cohort alone.
for number, (together, reading, encoders, read_cohorts) in enumerate(plan_readings()):

    rule:
        name:
            together
        input:
            pixels=PATHS.pixels("{cohort}", "{tiling}", "{part}"),
            tiles=PATHS.tiles("{cohort}", "{tiling}", "{part}"),
        output:
            [
                directory(PATHS.embeddings("{cohort}", "{tiling}", name, "{part}"))
                for name in encoders
            ],
        log:
            LOGS / f"embed/{{cohort}}/{{tiling}}/together-{number}/{{part}}.log",
        benchmark:
            TIMES / f"embed/{{cohort}}/{{tiling}}/together-{number}/{{part}}.tsv"
        wildcard_constraints:
            cohort="|".join(map(re.escape, read_cohorts)),
        conda:
            CONDA
        resources:
            mem_mb=lambda wildcards, attempt: 6000 * attempt,
            runtime=lambda wildcards, attempt: 480 * attempt,
            gpu=1,
        params:
            config=RESOLVED,
            reading=reading,
            # Of the output, and so none of what the job is compared by: one encoder may leave.
            encoders=lambda wildcards, output: [
                f"--encoder {Path(path).parent.name}" for path in output
            ],
        shell:
            "stainssl embed --config {params.config} --cohort {wildcards.cohort}"
            " --part {wildcards.part} {params.encoders}"
            " --threads {threads} 2>&1 | tee {log}"

    workflow.ruleorder(together, "embed")


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
