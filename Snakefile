"""The workflow of this clone, as `snakemake` looks for it; it stands in workflow/Snakefile."""


include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
