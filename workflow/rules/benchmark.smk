"""Tasks × encoders × heads: one table and its figures."""

CONDA = "../envs/statistics.yaml"

BENCHMARK = PATHS.benchmark("{benchmark}")


rule benchmark:
    input:
        unpack(PLAN.inputs("benchmark", "benchmark")),
    output:
        table=BENCHMARK / "table.csv",
        md=BENCHMARK / "table.md",
        tex=BENCHMARK / "table.tex",
        html=report(
            BENCHMARK / "table.html",
            caption="../report/table.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "table"},
        ),
        comparisons=BENCHMARK / "comparisons.csv",
        figures=BENCHMARK / "robustness.json",
        roc=report(
            BENCHMARK / "roc.png",
            caption="../report/roc.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "ROC"},
        ),
        calibration=report(
            BENCHMARK / "calibration.png",
            caption="../report/calibration.rst",
            category="Benchmark",
            labels={
                "benchmark": "{benchmark}",
                "shows": "calibration and decision curves",
            },
        ),
        scatter=report(
            BENCHMARK / "scatter.png",
            caption="../report/scatter.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "predicted against true"},
        ),
        forest=report(
            BENCHMARK / "forest.png",
            caption="../report/forest.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "figures with intervals"},
        ),
        robustness=report(
            BENCHMARK / "robustness.png",
            caption="../report/robustness.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "robustness"},
        ),
        few_shot=report(
            BENCHMARK / "few_shot.png",
            caption="../report/few_shot.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "few labelled tiles"},
        ),
        umap=report(
            BENCHMARK / "umap.png",
            caption="../report/umap.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "UMAP by site and label"},
        ),
        survival=report(
            BENCHMARK / "survival.png",
            caption="../report/survival.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "survival of risk groups"},
        ),
    log:
        LOGS / "benchmark/{benchmark}.log",
    benchmark:
        TIMES / "benchmark/{benchmark}.tsv"
    conda:
        CONDA
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        config=config_file,
        job=PLAN.param("benchmark", "benchmark"),
    shell:
        "stainssl benchmark --config {params.config:q} --benchmark {wildcards.benchmark}"
        " --threads {threads} 2>&1 | tee {log:q}"
