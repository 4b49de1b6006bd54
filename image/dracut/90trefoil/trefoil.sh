#!/bin/sh
# dracut, initqueue/online and initqueue/settled: fetches the payload, once, as soon as an interface has an address,
# whoever configured it. Where none gets one, the boot is not held for ever.

. /usr/lib/trefoil/early-boot.sh

# How long the boot waits for an address, seconds since the kernel began.
TREFOIL_NETWORK_WAIT=60
# Made when there is nothing left to do.
TREFOIL_DONE=/run/initramfs/trefoil.done

trefoil_has_address() {
    [ -n "$(ip -o address show scope global 2> /dev/null)" ]
}

trefoil_is_late() {
    read -r _trefoil_uptime _trefoil_rest < /proc/uptime
    [ "${_trefoil_uptime%%.*}" -ge "$TREFOIL_NETWORK_WAIT" ]
}

# Disks that systemd is asking a passphrase for already: begins again, and finds the key. The prompt ends by itself.
trefoil_unlock() {
    [ -n "${DRACUT_SYSTEMD:-}" ] || return 0
    for _trefoil_key in /run/cryptsetup-keys.d/*.key; do
        [ -e "$_trefoil_key" ] || continue
        _trefoil_name=${_trefoil_key##*/}
        _trefoil_unit="systemd-cryptsetup@$(systemd-escape "${_trefoil_name%.key}").service"
        case "$(systemctl show -p ActiveState --value "$_trefoil_unit")" in
            activating | failed) systemctl --no-block restart "$_trefoil_unit" ;;
        esac
    done
}

if [ ! -e "$TREFOIL_DONE" ]; then
    mkdir -p /run/initramfs
    if ! trefoil_wanted; then
        : > "$TREFOIL_DONE"
    elif trefoil_has_address; then
        trefoil_mounts
        if trefoil_fetch; then
            trefoil_unlock
        fi
        : > "$TREFOIL_DONE"
    elif trefoil_is_late; then
        trefoil_say "not reached: no address after $TREFOIL_NETWORK_WAIT s; the boot goes on without a payload"
        : > "$TREFOIL_DONE"
    fi
fi
