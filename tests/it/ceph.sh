#!/usr/bin/env bash
# A real object store that speaks S3: Ceph's monitor, one OSD in memory, and the RADOS gateway, all on loopback.
#   ceph.sh DIRECTORY PORT PORT PORT
# prints the gateway's URL when it answers, and ends all of them when its standard input is closed. The bucket is `sami`, the
# keys are `samitest` and `samisecret`. Needs Debian's ceph-mon, ceph-osd, radosgw, ceph-common and curl.
set -euo pipefail
directory=$1 v2=$2 v1=$3 web=$4
uuid() { cat /proc/sys/kernel/random/uuid; }
mkdir -p "$directory"/{mon,osd,run}
finish() {
    for file in "$directory"/*.pid; do
        [ -s "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null
    done
    true
}
trap finish EXIT

fsid=$(uuid)
export CEPH_CONF=$directory/ceph.conf
cat > "$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$v2,v1:127.0.0.1:$v1]
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
keyring = $directory/keyring
run_dir = $directory/run
admin_socket = $directory/run/\$name.\$pid.asok
log_file = $directory/\$name.log
pid_file = $directory/\$name.pid
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 2000
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_class_load_list = *
osd_class_default_list = *
ms_bind_port_min = 20000
ms_bind_port_max = 30000
[mon.a]
mon_data = $directory/mon
[osd.0]
osd_data = $directory/osd
keyring = $directory/osd/keyring
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$web
rgw_data = $directory/run
CONF

{
    ceph-authtool --create-keyring "$directory/keyring" --gen-key -n mon. --cap mon 'allow *'
    for client in client.admin client.rgw; do
        ceph-authtool "$directory/keyring" --gen-key -n "$client" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    done
    monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$v2,v1:127.0.0.1:$v1]" "$directory/monmap"
    ceph-mon --mkfs -i a --monmap "$directory/monmap" --keyring "$directory/keyring"
    ceph-mon -i a
    osd=$(uuid)
    timeout 60 ceph osd new "$osd" 0
    timeout 60 ceph auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' -o "$directory/osd/keyring"
    ceph-osd --mkfs -i 0 --osd-uuid "$osd"
    ceph-osd -i 0
    radosgw -n client.rgw
    for _ in $(seq 900); do
        (exec 3<> "/dev/tcp/127.0.0.1/$web") 2>/dev/null && break
        sleep 0.1
    done
    radosgw-admin -n client.rgw user create --uid=sami --display-name=sami --access-key=samitest --secret-key=samisecret
    nothing=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    for _ in $(seq 20); do
        curl -sf --aws-sigv4 aws:amz:us-east-1:s3 --user samitest:samisecret -H "x-amz-content-sha256: $nothing" \
            -X PUT "http://127.0.0.1:$web/sami" && break
        sleep 0.5
    done
} > "$directory/start.log" 2>&1 < /dev/null || { cat "$directory/start.log" >&2; exit 1; }
echo "http://127.0.0.1:$web"
cat > /dev/null
