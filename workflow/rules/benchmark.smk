"""Tasks × encoders × heads: one table and its figures."""

CONDA = "../envs/statistics.yaml"

BENCHMARK = PATHS.benchmark("{benchmark}")
FIGURES = {
    "roc": "ROC",
    "calibration": "calibration and decision curves",
    "scatter": "predicted against true",
    "forest": "figures with intervals",
    "robustness": "robustness",
    "few_shot": "few labelled tiles",
    "umap": "UMAP by site and label",
    "survival": "survival of risk groups",
}


rule benchmark:
    input:
        unpack(PLAN.inputs("benchmark", "benchmark")),
    output:
        **{
            name: (
                report(
                    BENCHMARK / f"{name}.png",
                    caption=f"../report/{name}.rst",
                    category="Benchmark",
                    labels={"benchmark": "{benchmark}", "shows": shows},
                )
                if name in PLAN.drawn_figures()
                else BENCHMARK / f"{name}.png"
            )
            for name, shows in FIGURES.items()
        },
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
        "logged {log:q} stainssl benchmark --config {params.config:q} --benchmark {wildcards.benchmark}"
        " --threads {threads}"
