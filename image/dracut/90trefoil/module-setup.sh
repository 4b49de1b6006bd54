#!/bin/bash
# dracut: puts the agent, its settings and its pins into the image, and has it run once the network is up.
#
# dracut's own variables and functions:
# shellcheck disable=SC2154

conf=/etc/trefoil/agent.conf

# trefoil_values NAME: every value that the settings file gives a name.
trefoil_values() {
    sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*//p" "$dracutsysrootdir$conf" \
        | sed -e 's/[[:space:]]*$//' -e 's/^"\(.*\)"$/\1/'
}

# Called by dracut: in the image if there are settings; without them there is nothing to put in.
check() {
    require_binaries trefoil-agent || return 1
    grep -q '^[[:space:]]*[^#[:space:]]' "$dracutsysrootdir$conf" 2> /dev/null || return 255
    return 0
}

# Called by dracut.
depends() {
    echo network
}

# Called by dracut.
installkernel() {
    hostonly='' instmods tpm_crb tpm_tis tpm_tis_spi tpm_ibmvtpm
}

# Called by dracut.
install() {
    local file name
    inst_multiple trefoil-agent cat ip mkdir modprobe mount sleep
    if dracut_module_included "systemd"; then
        inst_multiple systemctl systemd-escape
    fi
    inst_simple /usr/lib/trefoil/early-boot.sh
    if [[ -f $dracutsysrootdir$conf ]]; then
        inst_simple "$conf"
        for name in ca tenant-key; do
            while IFS= read -r file; do
                if ! [[ -f $dracutsysrootdir$file ]]; then
                    dfatal "trefoil: $conf says '$name = $file', and there is no such file"
                    exit 1
                fi
                inst_simple "$file"
            done < <(trefoil_values "$name")
        done
    fi
    # Certificates and public keys that the kernel's command line may name.
    for file in "$dracutsysrootdir"/etc/trefoil/*.pem; do
        [[ -f $file ]] || continue
        if grep -q 'PRIVATE KEY' "$file"; then
            dwarn "trefoil: $file holds a private key: left out of the image"
            continue
        fi
        inst_simple "${file#"$dracutsysrootdir"}"
    done
    # The network is brought up for us, too; `ip=` says how, else DHCP.
    mkdir -p "$initdir/etc/cmdline.d"
    echo "rd.neednet=1" > "$initdir/etc/cmdline.d/90trefoil.conf"
    # Before cryptroot-ask, which asks and waits.
    inst_hook initqueue/online 10 "$moddir/trefoil.sh"
    inst_hook initqueue/settled 10 "$moddir/trefoil.sh"
    inst_hook initqueue/finished 90 "$moddir/trefoil-finished.sh"
    dracut_need_initqueue
}
