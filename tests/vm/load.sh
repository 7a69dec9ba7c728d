#!/usr/bin/env bash
cat /proc/cpuinfo | grep -m1 model
dmesg | tail -n 5
mount | head -30
modprobe -v ipip
modprobe -v dummy
ls /lib/modules
time $PACKETS --nocapture the_verifiers_budget
echo PASS load
