#!/usr/bin/env bash
# A real Slurm on this machine's loopback: a controller, three nodes of four CPUs, MUNGE with a key of its own.
#   slurm.sh DIRECTORY MODE PORT PORT PORT PORT PORT PORT
# writes slurm.conf into the directory, prints `ready` when all nodes are idle (or `skip WHY`), and ends all of it when its
# standard input is closed. Needs root, and Debian's slurm-wlm, slurm-client and munge. In the mode `memory` a job that takes
# more memory than it asked for is killed, by control groups of version 1. In `accounts` there is accounting, by slurmdbd
# and MariaDB (Debian's slurmdbd and mariadb-server), and the controller forgets jobs as soon as it can. Else `plain`.
set -euo pipefail
directory=$1 mode=$2 controller=$3 accounts=$4 database=$5
shift 5
mkdir -p "$directory"/{state,log,run,munge}
chmod 755 "$directory"
chmod 711 "$directory/munge"
chmod 700 "$directory/state"
export SLURM_CONF=$directory/slurm.conf

gone() { [ ! -e "/proc/$1/status" ] || grep -q '^State:.Z' "/proc/$1/status"; }
finish() {
    # With MUNGE gone, none of the programs answers.
    set +e
    timeout 5 scancel --signal=KILL --full -u root 2>/dev/null
    timeout 5 scancel -u root 2>/dev/null
    sleep 0.3
    for file in "$directory"/run/*.pid "$directory"/database/pid "$directory"/munge/pid; do
        [ -s "$file" ] || continue
        process=$(cat "$file")
        # What is in it goes with the directory.
        [ "$file" = "$directory/database/pid" ] && kill -9 "$process" 2>/dev/null
        kill "$process" 2>/dev/null || continue
        for _ in $(seq 30); do gone "$process" && break; sleep 0.1; done
        gone "$process" || kill -9 "$process" 2>/dev/null
    done
    # Groups that nodes leave empty.
    [ "$mode" != memory ] || find /sys/fs/cgroup/*/slurm_m[1-9] -depth -type d -exec rmdir {} \; 2>/dev/null
    # Steps whose node was killed in a test.
    for step in $(pgrep -x slurmstepd); do
        { tr '\0' '\n' < "/proc/$step/environ"; } 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF" && kill -9 "$step"
    done
    true
}
trap finish EXIT

nodes=n processes="ProctrackType=proctrack/linuxproc
TaskPlugin=task/none" age=300 account="AccountingStorageType=accounting_storage/none"
if [ "$mode" = memory ]; then
    # The groups of nodes are called by their names: not as those of another cluster here.
    nodes=m
    group=/sys/fs/cgroup/memory/sami-$$
    if ! { mkdir "$group" && echo 100M > "$group/memory.limit_in_bytes" && rmdir "$group"; } 2>/dev/null; then
        echo "skip memory cannot be bounded: /sys/fs/cgroup/memory, control groups of version 1, cannot be written"
        exit 0
    fi
    processes="ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup"
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup ConstrainRAMSpace=yes > "$directory/cgroup.conf"
fi

head -c 256 /dev/urandom > "$directory/munge/key"
chmod 400 "$directory/munge/key"
munged --force --key-file="$directory/munge/key" --socket="$directory/munge/socket" --pid-file="$directory/munge/pid" \
    --seed-file="$directory/munge/seed" --log-file="$directory/munge/log" 2> "$directory/log/munged"

host=$(hostname -s)
if [ "$mode" = accounts ]; then
    mkdir "$directory/database"
    chown mysql "$directory/database"
    mariadb-install-db --user=mysql --datadir="$directory/database" --auth-root-authentication-method=socket --skip-test-db \
        > "$directory/log/database-install" 2>&1
    mariadbd --no-defaults --user=mysql --datadir="$directory/database" --socket="$directory/database/socket" \
        --pid-file="$directory/database/pid" --bind-address=127.0.0.1 --port="$database" --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --log-error="$directory/log/database" > /dev/null 2>&1 < /dev/null &
    disown
    ask() { mariadb --no-defaults -S "$directory/database/socket" -e "$1"; }
    for _ in $(seq 300); do ask 'select 1' > /dev/null 2>&1 && break; sleep 0.1; done
    ask "create user slurm@127.0.0.1 identified by 'slurm'; create user slurm@localhost identified by 'slurm';
        grant all on *.* to slurm@127.0.0.1; grant all on *.* to slurm@localhost"
    cat > "$directory/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$directory/munge/socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$accounts
SlurmUser=root
LogFile=$directory/log/slurmdbd
PidFile=$directory/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$database
StorageUser=slurm
StoragePass=slurm
CONF
    chmod 600 "$directory/slurmdbd.conf"
    age=2
    account="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$accounts
AccountingStoragePass=$directory/munge/socket"
fi
cat > "$SLURM_CONF" <<CONF
ClusterName=sami
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool-%n
SlurmctldPidFile=$directory/run/slurmctld.pid
SlurmdPidFile=$directory/run/slurmd-%n.pid
SlurmctldLogFile=$directory/log/slurmctld
SlurmdLogFile=$directory/log/slurmd-%n
$processes
SwitchType=switch/none
MpiDefault=none
$account
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
ReturnToService=2
# Tests do not wait for the timers of a site.
SchedulerParameters=sched_min_interval=50000,batch_sched_delay=0,bf_interval=1
SlurmctldTimeout=30
SlurmdTimeout=6
KillWait=2
MinJobAge=$age
CompleteWait=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
number=0
for port in "$@"; do
    number=$((number + 1))
    mkdir -p "$directory/spool-$nodes$number"
    echo "NodeName=$nodes$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=4 RealMemory=4000 State=UNKNOWN"
done >> "$SLURM_CONF"
# What is in `urgent` pushes others from their nodes: at once, or after they had time to save.
cat >> "$SLURM_CONF" <<CONF
PartitionName=main Nodes=$nodes[1-$number] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=graceful Nodes=$nodes[1-$number] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=60
PartitionName=urgent Nodes=$nodes[1-$number] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF

if [ "$mode" = accounts ]; then
    slurmdbd 2> "$directory/log/slurmdbd.err"
    for _ in $(seq 300); do sacctmgr -n show cluster > /dev/null 2>&1 && break; sleep 0.1; done
    sacctmgr -i add cluster sami > /dev/null
fi
slurmctld -c 2> "$directory/log/slurmctld.err"
for node in $(seq "$number"); do slurmd -N "$nodes$node" 2> "$directory/log/slurmd-$nodes$node.err"; done
for _ in $(seq 300); do
    if [ "$(timeout 5 sinfo -h -p main -N -o %T 2>/dev/null | grep -cx idle)" = "$number" ]; then
        echo ready
        cat > /dev/null || true
        exit 0
    fi
    sleep 0.1
done
cat "$directory"/log/*.err >&2
exit 1
