"""Slide and patient tasks: embeddings, folds → predictions, metrics, models, attention."""


rule mil:
    input:
        embeddings=task_embeddings,
        folds=PATHS.folds("{task}"),
    output:
        directory(PATHS.mil("{task}", "{encoder}", "{head}")),
    log:
        LOGS / "mil/{task}/{encoder}/{head}.log",
    benchmark:
        TIMES / "mil/{task}/{encoder}/{head}.tsv"
    wildcard_constraints:
        head="|".join(map(re.escape, CONFIG.heads)) or "(?!)",
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        config=RESOLVED,
        head=head_settings,
        external=external_rows,
        seed=CONFIG.seed,
    shell:
        "stainssl mil --config {params.config} --task {wildcards.task}"
        " --encoder {wildcards.encoder} --head {wildcards.head}"
        " --threads {threads} 2>&1 | tee {log}"
