"""Embeddings: pixels, encoders → embeddings of a part; then the cohort's embedded tiles."""

CONDA = "../envs/reading.yaml"


rule embed:
    input:
        unpack(PLAN.inputs("embed", "cohort", "part", "encoder")),
    output:
        directory(PATHS.embeddings("{cohort}", "{encoder}", "{part}")),
    log:
        LOGS / "embed/{cohort}/{tiling}/{encoder}/{part}.log",
    benchmark:
        TIMES / "embed/{cohort}/{tiling}/{encoder}/{part}.tsv"
    wildcard_constraints:
        encoder=PLAN.embedded_alone(),
    conda:
        CONDA
    threads: lambda wildcards: PLAN.embed_threads(wildcards.cohort, workflow.cores)
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
        gpu=1,
    params:
        config=config_file,
        job=PLAN.param("embed", "cohort", "part", "encoder"),
    shell:
        "logged {log:q} stainssl embed --config {params.config:q} --cohort {wildcards.cohort}"
        " --part {wildcards.part} --encoder {wildcards.encoder}"
        " --threads {threads}"


# Pretrained encoders embed a cohort together. A group keeps its encoders: one that is added later,
# or whose weights change, goes into another group.
for number, (together, encoders, read_cohorts, group) in enumerate(PLAN.together()):

    rule:
        name:
            together
        input:
            unpack(PLAN.inputs("embed", "cohort", "part", encoder=encoders[0])),
        output:
            [
                directory(PATHS.embeddings("{cohort}", name, "{part}"))
                for name in encoders
            ],
        log:
            LOGS / f"embed/{{cohort}}/{{tiling}}/together-{number}/{{part}}.log",
        benchmark:
            TIMES / f"embed/{{cohort}}/{{tiling}}/together-{number}/{{part}}.tsv"
        wildcard_constraints:
            cohort=any_of(read_cohorts),
        conda:
            CONDA
        threads: lambda wildcards: PLAN.embed_threads(wildcards.cohort, workflow.cores)
        resources:
            mem_mb=lambda wildcards, attempt: 6000 * attempt,
            runtime=lambda wildcards, attempt: 480 * attempt,
            gpu=1,
        params:
            config=config_file,
            group=PLAN.group_param(group),
            # Takes `output`, so it is not compared: removing an encoder reruns no job.
            encoders=lambda wildcards, output: [
                f"--encoder {Path(path).parent.name}" for path in output
            ],
        shell:
            "logged {log:q} stainssl embed --config {params.config:q} --cohort {wildcards.cohort}"
            " --part {wildcards.part} {params.encoders}"
            " --threads {threads}"

    workflow.ruleorder(together, "embed")


rule embedded:
    input:
        unpack(PLAN.inputs("embedded", "cohort", "encoder")),
    output:
        slides=report(
            PATHS.embedded("{cohort}", "{encoder}"),
            caption="../report/embedded.rst",
            category="Slides",
            labels={
                "cohort": "{cohort}",
                "shows": "tiles with an embedding by {encoder}",
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
        config=config_file,
        job=PLAN.param("embedded", "cohort", "encoder"),
    shell:
        "logged {log:q} stainssl cohort embedded --config {params.config:q} --cohort {wildcards.cohort}"
        " --encoder {wildcards.encoder}"
