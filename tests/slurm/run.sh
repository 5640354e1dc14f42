#!/usr/bin/env bash
# Runs the WILDS miniature through profiles/slurm on a real SLURM, and checks its jobs.
#
#   run.sh [FOLDER]            by hand, or `make test-slurm`; 10 to 15 minutes on two cores
#
# Passes if the table is written, jobs ran in both partitions, light jobs were grouped, and the job
# with too little memory was restarted with more.
set -euo pipefail
cd "$(dirname "$0")/../.."
FOLDER=$(realpath -m "${1:-$(mktemp -d)}")
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 USER=${USER:-$(id -un)}
export PATH=$(dirname "$(command -v "$PYTHON")"):$PATH

trap 'tests/slurm/cluster.sh stop "$FOLDER/slurm"' EXIT
eval "$(tests/slurm/cluster.sh start "$FOLDER/slurm")"
sinfo

"$PYTHON" -m tests.slurm.miniature "$FOLDER/run"

# The profile is copied, as in docs/hpc.md, and one line added: the probe gets too little memory at
# its first attempt. Cores and waiting times for this machine are set on the command line.
cp -r profiles/slurm "$FOLDER/profile"
echo '  - probe:mem_mb=100*15**(attempt-1)' >>"$FOLDER/profile/config.yaml"
snakemake() {
    "$PYTHON" -m snakemake --profile "$FOLDER/profile" --directory "$FOLDER/run" \
        --configfile "$FOLDER/run/config.yaml" --jobs 4 --latency-wait 10 \
        --set-threads pretrain=2 embed=1 pixels=1 \
        --slurm-init-seconds-before-status-checks 5 --slurm-no-account "$@"
}
snakemake 2>&1 | tee "$FOLDER/snakemake.log"

sacct -X --clusters all --format JobID%6,JobName%10,Partition%5,AllocCPUS%4,ReqMem%8,State%14,Elapsed,Comment%60 \
    | tee "$FOLDER/jobs.txt"
cat "$FOLDER/run/results/benchmarks/wilds/table.md"

fail() { echo "FAILED: $1" >&2; exit 1; }
for partition in cpu gpu; do
    grep -q " $partition .*COMPLETED" "$FOLDER/jobs.txt" || fail "no job completed in partition $partition"
done
grep -q "OUT_OF_ME\|CANCELLED\|FAILED" "$FOLDER/jobs.txt" || fail "no job was refused memory"
grep -q "Trying to restart job" "$FOLDER/snakemake.log" || fail "no job was tried again"
grep -q "light" "$FOLDER/snakemake.log" || fail "no group was submitted"
echo "passed: $(grep -c COMPLETED "$FOLDER/jobs.txt") jobs completed"
