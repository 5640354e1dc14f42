"""Entry point for `snakemake` in a clone; the workflow itself is workflow/Snakefile."""


include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
