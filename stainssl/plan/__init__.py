"""Jobs: inputs, outputs and settings of each stage, shared by the Snakefile and the stages."""
