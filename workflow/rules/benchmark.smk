"""Benchmark: results of tasks × encoders × heads → one table and its figures."""

CONDA = "../envs/statistics.yaml"

BENCHMARK = PATHS.benchmark("{benchmark}")


rule benchmark:
    input:
        unpack(PLAN.inputs("benchmark", "benchmark")),
    output:
        figures=report(
            directory(PATHS.figures("{benchmark}")),
            patterns=["{figure}.png"],
            caption="../report/figures.rst",
            category="Benchmark",
            labels={"benchmark": "{benchmark}", "shows": "{figure}"},
        ),
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
        robustness=BENCHMARK / "robustness.json",
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
