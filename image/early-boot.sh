# shellcheck shell=sh
# What the initramfs does before the root file system is there, shared by initramfs-tools and dracut; sourced, not run.
#
# Installed as /usr/lib/trefoil/early-boot.sh. Nothing here stops a boot: whatever happens is said on the console, and
# the boot goes on, so that a person with a passphrase can still open the disk.

# Where the settings are, in the image as in the system.
TREFOIL_CONF=/etc/trefoil/agent.conf
# How long the agent may try, seconds, where neither the settings nor the kernel's command line say.
TREFOIL_TIMEOUT=60

# trefoil_say TEXT: one line for whoever looks at the screen.
trefoil_say() {
	echo "trefoil: $*" >/dev/console 2>/dev/null || echo "trefoil: $*" >&2
	if command -v plymouth >/dev/null 2>&1 && plymouth --ping 2>/dev/null; then
		plymouth display-message --text="trefoil: $*" 2>/dev/null || :
	fi
}

# trefoil_kernel_argument GLOB: whether the kernel's command line has an argument like this.
trefoil_kernel_argument() {
	read -r _trefoil_line </proc/cmdline || :
	# The words are to be split, the glob is meant to be one.
	# shellcheck disable=SC2254
	for _trefoil_word in $_trefoil_line; do
		case "$_trefoil_word" in
		$1) return 0 ;;
		esac
	done
	return 1
}

# trefoil_setting NAME: whether the settings file or the kernel's command line has this setting. Not every initramfs has
# a grep.
trefoil_setting() {
	trefoil_kernel_argument "trefoil.$1=*" && return 0
	[ -f "$TREFOIL_CONF" ] || return 1
	while IFS='= 	' read -r _trefoil_name _trefoil_rest || [ -n "$_trefoil_name" ]; do
		[ "$_trefoil_name" != "$1" ] || return 0
	done <"$TREFOIL_CONF"
	return 1
}

# trefoil_mounted DIR: whether something is mounted there.
trefoil_mounted() {
	while read -r _trefoil_what _trefoil_where _trefoil_rest; do
		[ "$_trefoil_where" != "$1" ] || return 0
	done </proc/mounts
	return 1
}

# trefoil_wanted: whether the agent has anything to do in this boot.
trefoil_wanted() {
	if trefoil_kernel_argument trefoil=off; then
		trefoil_say "switched off by trefoil=off on the kernel's command line"
		return 1
	fi
	trefoil_setting server
}

# trefoil_mounts: the TPM's driver, the kernel's logs, and memory for the payload.
trefoil_mounts() {
	for _trefoil_module in tpm_crb tpm_tis tpm_tis_spi tpm_ibmvtpm; do
		modprobe -q "$_trefoil_module" 2>/dev/null || :
	done
	_trefoil_left=10
	while [ ! -e /dev/tpmrm0 ] && [ "$_trefoil_left" -gt 0 ] && ! trefoil_setting tcti; do
		sleep 1
		_trefoil_left=$((_trefoil_left - 1))
	done
	if [ -d /sys/kernel/security ] && ! trefoil_mounted /sys/kernel/security; then
		mount -t securityfs securityfs /sys/kernel/security ||
			trefoil_say "securityfs cannot be mounted: the control plane will miss the boot log"
	fi
	trefoil_memory || trefoil_say "no memory file system can be mounted on /run/trefoil"
}

# trefoil_memory: memory for the payload that is never swapped out, on /run/trefoil; what is mounted there stays. A tmpfs
# where it can be kept from swap (Linux 6.4 on), for IMA's `tcb` policy does not measure what is read there; else a
# ramfs, which it measures. Large enough for a payload of 64 MiB beside the one before it.
trefoil_memory() {
	! trefoil_mounted /run/trefoil || return 0
	mkdir -p /run/trefoil
	mount -t tmpfs -o noswap,size=136m,mode=0700,nosuid,nodev tmpfs /run/trefoil 2>/dev/null ||
		mount -t ramfs -o mode=0700,nosuid,nodev ramfs /run/trefoil
}

# trefoil_fetch: runs the agent until the payload is here or the time is up, says what came of it, and returns the
# agent's exit code.
trefoil_fetch() {
	if trefoil_setting timeout; then
		set --
	else
		set -- --timeout "$TREFOIL_TIMEOUT"
	fi
	_trefoil_code=0
	trefoil-agent --once "$@" </dev/null || _trefoil_code=$?
	case "$_trefoil_code" in
	0) trefoil_say "delivered: the payload is in place" ;;
	2) trefoil_say "the settings are wrong: see the line above; the boot goes on without a payload" ;;
	3) trefoil_say "not reached: no gateway answered in time (network? server? its certificate?); the boot goes on without a payload" ;;
	4) trefoil_say "refused: the control plane did not release the payload; 'trefoil node events NAME' says why; the boot goes on without it" ;;
	*) trefoil_say "this machine is at fault (exit code $_trefoil_code): see the lines above; the boot goes on without a payload" ;;
	esac
	return "$_trefoil_code"
}
