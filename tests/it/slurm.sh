#!/usr/bin/env bash
# A real Slurm on this machine's loopback: a controller, three nodes of four CPUs, MUNGE with a key of its own.
#   slurm.sh DIRECTORY PORT PORT PORT PORT
# writes slurm.conf into the directory, prints `ready` when all nodes are idle, and ends all of it when its standard input is
# closed. Needs root, and Debian's slurm-wlm, slurm-client and munge.
set -euo pipefail
directory=$1
shift
controller=$1
shift
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
    for file in "$directory"/run/*.pid "$directory"/munge/pid; do
        [ -s "$file" ] || continue
        process=$(cat "$file")
        kill "$process" 2>/dev/null || continue
        for _ in $(seq 30); do gone "$process" && break; sleep 0.1; done
        gone "$process" || kill -9 "$process" 2>/dev/null
    done
    # Steps whose node was killed in a test.
    for step in $(pgrep -x slurmstepd); do
        { tr '\0' '\n' < "/proc/$step/environ"; } 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF" && kill -9 "$step"
    done
    true
}
trap finish EXIT

head -c 256 /dev/urandom > "$directory/munge/key"
chmod 400 "$directory/munge/key"
munged --force --key-file="$directory/munge/key" --socket="$directory/munge/socket" --pid-file="$directory/munge/pid" \
    --seed-file="$directory/munge/seed" --log-file="$directory/munge/log" 2> "$directory/log/munged"

host=$(hostname -s)
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
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
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
MinJobAge=300
CompleteWait=0
CONF
number=0
for port in "$@"; do
    number=$((number + 1))
    mkdir -p "$directory/spool-n$number"
    echo "NodeName=n$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=4 RealMemory=4000 State=UNKNOWN"
done >> "$SLURM_CONF"
echo "PartitionName=main Nodes=n[1-$number] Default=YES MaxTime=INFINITE State=UP" >> "$SLURM_CONF"

slurmctld -c 2> "$directory/log/slurmctld.err"
for node in $(seq "$number"); do slurmd -N "n$node" 2> "$directory/log/slurmd-n$node.err"; done
for _ in $(seq 300); do
    if [ "$(timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -cx idle)" = "$number" ]; then
        echo ready
        cat > /dev/null || true
        exit 0
    fi
    sleep 0.1
done
cat "$directory"/log/*.err >&2
exit 1
