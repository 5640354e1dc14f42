#!/usr/bin/env bash
# A real SLURM on this machine: two virtual nodes, the partitions cpu and gpu, accounting.
#
#   cluster.sh start FOLDER    all files are written to FOLDER; prints what to export
#   cluster.sh stop FOLDER     stops the daemons of `start`, by their process ids
#
# Needs root and Debian's packages: slurmctld slurmd slurmdbd slurm-client munge mariadb-server.
# The gpu partition has a node with one GPU that exists only in SLURM's configuration: jobs that
# request a GPU run there, without one.
set -euo pipefail

ports() { # four ports from a base that depends on the folder
    local base=$((20000 + 16#$(printf %s "$FOLDER" | md5sum | cut -c1-3) * 6))
    CTLD=$base DBD=$((base + 1)) SQL=$((base + 2)) NODES=$((base + 3))
}

configure() {
    local memory
    memory=$(awk '/MemTotal/ {print int($2 / 1024) - 500}' /proc/meminfo)
    cat >"$FOLDER/slurm.conf" <<CONF
ClusterName=virtual
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$CTLD
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge.socket
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool.%n
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.%n.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=bf_interval=5
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$DBD
AccountingStoragePass=$FOLDER/munge.socket
AccountingStorageTRES=gres/gpu
GresTypes=gpu
NodeName=v1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$NODES CPUs=16 RealMemory=$memory
NodeName=v2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((NODES + 1)) CPUs=16 RealMemory=$memory Gres=gpu:1
PartitionName=cpu Nodes=v1 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=v2 MaxTime=INFINITE State=UP
CONF
    echo "NodeName=v2 Name=gpu File=/dev/null" >"$FOLDER/gres.conf"
    cat >"$FOLDER/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge.socket
DbdHost=$(hostname)
DbdAddr=127.0.0.1
DbdPort=$DBD
SlurmUser=root
LogFile=$FOLDER/slurmdbd.log
PidFile=$FOLDER/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$SQL
StorageUser=slurm
StorageLoc=slurm_acct
CONF
    chmod 600 "$FOLDER/slurmdbd.conf"
}

wait_for() { # a command, for at most 30 s
    for _ in $(seq 60); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    echo "after 30 s still failing: $*; see the logs in $FOLDER" >&2
    return 1
}

start_munge() {
    dd if=/dev/urandom of="$FOLDER/munge.key" bs=1 count=1024 status=none
    chmod 400 "$FOLDER/munge.key"
    munged --force --key-file="$FOLDER/munge.key" --socket="$FOLDER/munge.socket" \
        --pid-file="$FOLDER/munged.pid" --log-file="$FOLDER/munged.log" --seed-file="$FOLDER/munge.seed"
}

start_database() {
    mariadb-install-db --datadir="$FOLDER/sql" --user=root >"$FOLDER/sql-install.log" 2>&1
    mariadbd --no-defaults --datadir="$FOLDER/sql" --user=root --socket="$FOLDER/sql.socket" \
        --port="$SQL" --bind-address=127.0.0.1 --pid-file="$FOLDER/mariadbd.pid" \
        >"$FOLDER/mariadbd.log" 2>&1 &
    wait_for mariadb --socket="$FOLDER/sql.socket" -e "select 1"
    mariadb --socket="$FOLDER/sql.socket" -e "
        create database slurm_acct; create user slurm@'127.0.0.1'; create user slurm@localhost;
        grant all on slurm_acct.* to slurm@'127.0.0.1'; grant all on slurm_acct.* to slurm@localhost"
}

start() {
    mkdir -p "$FOLDER"/{state,spool.v1,spool.v2}
    chmod 711 "$FOLDER"
    configure
    start_munge
    start_database
    slurmdbd
    wait_for sacctmgr -n list cluster
    sacctmgr -i add cluster virtual >/dev/null
    slurmctld
    wait_for scontrol ping
    slurmd -N v1
    slurmd -N v2
    wait_for bash -c 'sinfo -h -N -t idle | grep -c ^v | grep -qx 2'
    echo "export SLURM_CONF=$FOLDER/slurm.conf"
}

stop() { # by the daemons' pid files
    for name in slurmd.v1 slurmd.v2 slurmctld slurmdbd mariadbd munged; do
        if [ -s "$FOLDER/$name.pid" ]; then kill "$(cat "$FOLDER/$name.pid")" 2>/dev/null || true; fi
    done
}

FOLDER=$(realpath -m "${2:?cluster.sh start|stop FOLDER}")
export SLURM_CONF=$FOLDER/slurm.conf
ports
case "$1" in
start) start ;;
stop) stop ;;
*)
    echo "cluster.sh start|stop FOLDER" >&2
    exit 2
    ;;
esac
