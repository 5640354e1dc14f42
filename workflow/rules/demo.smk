"""The synthetic cohort: seed → slides, sheet, truth polygons."""

if demo_files("slides"):

    rule demo:
        output:
            sheet=PATHS.demo() / "slides.csv",
            slides=demo_files("slides"),
            truth=demo_files("truth"),
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
            config=RESOLVED,
            settings=as_param(
                [one.demo.model_dump() for one in CONFIG.cohorts.values() if one.demo]
            ),
        shell:
            "stainssl demo --config {params.config} --threads {threads} 2>&1 | tee {log}"
