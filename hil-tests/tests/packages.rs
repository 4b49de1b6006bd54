//! What is shipped: packages install, start nothing, and leave what must stay; the container recipe's tree is enough for
//! the agent. `cargo xtask package` builds what these scenarios look at, and runs them.
//!
//! The variables: `TREFOIL_PACKAGES`, the directory of the packages; `TREFOIL_AGENT_STATIC`, the static agent.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hil_tests::{
    apt::{self, Tool},
    rig::{self, NodeAdd, Options, Rig},
    scratch::Scratch,
    spawn::{self, Launch, Program},
    swtpm::{EkKind, Swtpm},
    sys,
};

const SOON: Duration = Duration::from_secs(60);

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../image").join(name)
}

/// The package `NAME_*_ARCH.deb`; `None`, and a line, if there are no packages.
fn package(name: &str, arch: &str) -> Result<Option<PathBuf>> {
    let Some(dir) = env::var_os("TREFOIL_PACKAGES") else {
        println!("skipped: no packages: cargo xtask package builds them");
        return Ok(None);
    };
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let named = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if named.strip_prefix(name).is_some_and(|rest| rest.starts_with('_') && rest.ends_with(&format!("_{arch}.deb")))
        {
            return Ok(Some(path));
        }
    }
    bail!("{} has no package {name} for {arch}", Path::new(&dir).display())
}

fn host_arch() -> Result<String> {
    Ok(spawn::run(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

/// Unpacks a package: its files below `root`, its control file's fields.
fn unpack(package: &Path, root: &Path) -> Result<BTreeMap<String, String>> {
    spawn::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(root))?;
    let control = spawn::run(Command::new("dpkg-deb").arg("--field").arg(package))?;
    Ok(control
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

#[test]
fn the_agent_package_has_all_that_an_image_needs_and_depends_on_nothing() -> Result<()> {
    let scratch = Scratch::new("package")?;
    for arch in ["amd64", "arm64"] {
        if arch != host_arch()? && env::var_os("TREFOIL_PACKAGES").is_some() && package("trefoil-agent", arch).is_err()
        {
            println!("skipped: no agent package for {arch}: its Rust target cannot be had");
            continue;
        }
        let Some(package) = package("trefoil-agent", arch)? else { return Ok(()) };
        let root = scratch.path().join(arch);
        let control = unpack(&package, &root)?;
        ensure!(control.get("Architecture").is_some_and(|it| it == arch), "{control:?}");
        ensure!(control.get("Depends").is_none_or(|it| it.trim().is_empty()), "{control:?}");
        for (path, mode) in [
            ("usr/bin/trefoil-agent", 0o755),
            ("usr/lib/systemd/system/trefoil-agent.service", 0o644),
            ("usr/lib/systemd/system/trefoil-memory.service", 0o644),
            ("usr/share/initramfs-tools/hooks/trefoil", 0o755),
            ("usr/lib/dracut/modules.d/90trefoil/module-setup.sh", 0o755),
            ("usr/lib/trefoil/trefoil-key", 0o755),
            ("usr/share/man/man8/trefoil-agent.8.gz", 0o644),
            ("usr/share/man/man5/trefoil-agent.conf.5.gz", 0o644),
        ] {
            let found = fs::metadata(root.join(path)).with_context(|| path.to_owned())?;
            ensure!(found.permissions().mode() & 0o7777 == mode, "{path}: {:o}", found.permissions().mode());
        }
        // Settings exist where somebody made them; an empty file would be packed into images.
        ensure!(!root.join("etc").exists(), "the package has files in /etc");
        let machine = fs::read(root.join("usr/bin/trefoil-agent"))?.get(0x12).copied();
        // ELF e_machine: EM_X86_64 is 62, EM_AARCH64 is 183.
        ensure!(machine == Some(if arch == "amd64" { 62 } else { 183 }), "{arch}: e_machine {machine:?}");
    }
    Ok(())
}

#[test]
fn the_manual_names_every_setting_and_exit_status_of_the_help() -> Result<()> {
    let help = spawn::run(Command::new(rig::agent_binary()?).arg("--help"))?;
    let page = |name: &str| fs::read_to_string(file(&format!("man/{name}"))).map(|text| text.replace("\\-", "-"));
    let settings = page("trefoil-agent.conf.5")?;
    // The settings are one paragraph, the first is `server`; what a setting is stands behind two blanks or more.
    let named: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("  server "))
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(named.len() >= 12 && named.contains(&"tenant-key"), "{named:?}");
    for name in named {
        let has = settings.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|macro_name| [".B", ".BI"].contains(&macro_name)) && words.next() == Some(name)
        });
        ensure!(has, "trefoil-agent.conf.5 does not say what {name} is");
    }
    let program = page("trefoil-agent.8")?;
    for status in 0..=4 {
        ensure!(
            program.contains(&format!("\n.B {status}\n")),
            "trefoil-agent.8 does not say what exit status {status} is"
        );
    }
    for flag in ["--check", "--print", "--config", "--json", "--once"] {
        ensure!(help.contains(flag.trim_start_matches("--")) && program.contains(flag), "{flag}");
    }
    Ok(())
}

/// What runs in a private copy of this system (an overlay: nothing is changed, nobody else sees it), without systemd. The
/// packages are in `/mnt`. Lines `NAME=VALUE` are what is asked about.
const INSTALL: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
dpkg --install /mnt/trefoil_*_"$ARCH".deb /mnt/trefoil-agent_*_"$ARCH".deb >/dev/null
echo "data=$(stat -c '%U:%G %a' /var/lib/trefoil)"
echo "shell=$(getent passwd trefoil | cut -d: -f6-7)"
echo "changed=$(dpkg --verify trefoil trefoil-agent)"
echo "agent=$(trefoil-agent --version)"
for unit in trefoil trefoil-agent; do
    [ ! -L "/etc/systemd/system/multi-user.target.wants/$unit.service" ] || echo "enabled-$unit=yes"
done
! command -v systemd-analyze >/dev/null || echo "verify=$(systemd-analyze verify --man=no \
    trefoil.service trefoil-agent.service trefoil-memory.service 2>&1 | tr '\n' ';')"
runuser -u trefoil -- trefoil init --operator-dir /tmp/trefoil-operator --name localhost >/dev/null 2>&1
echo "settings=$(stat -c '%U %a' /var/lib/trefoil/trefoil.toml)"
served=0
runuser -u trefoil -- timeout 5 trefoil serve --gateway 127.0.0.1:0 --api 127.0.0.1:0 >/tmp/served 2>&1 || served=$?
echo "served=$served $(grep -c 'listening on' /tmp/served)"
dpkg --install /mnt/trefoil_*_"$ARCH".deb >/dev/null
echo "upgraded=$(stat -c '%U %a' /var/lib/trefoil/trefoil.toml)"
dpkg --purge trefoil trefoil-agent >/dev/null 2>&1
echo "kept=$(stat -c '%U %a' /var/lib/trefoil/trefoil.toml)"
echo "left=$(find /usr/lib/systemd/system /etc/systemd /usr/lib/trefoil -name '*trefoil*' 2>/dev/null | tr '\n' ' ')"
"#;

/// Makes the overlay and runs what comes as `$2` in it; 77 where the kernel has none.
const IN_A_COPY: &str = r#"
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root" 2>/dev/null || exit 77
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs none "$1/root/run"
mount -t tmpfs -o mode=1777 none "$1/root/tmp"
mount --bind "$3" "$1/root/mnt"
exec chroot "$1/root" sh -c "$2"
"#;

#[test]
fn packages_install_without_systemd_start_nothing_and_a_purge_keeps_the_keys() -> Result<()> {
    let arch = host_arch()?;
    let (Some(agent), Some(_)) = (package("trefoil-agent", &arch)?, package("trefoil", &arch)?) else { return Ok(()) };
    if !sys::is_root() {
        println!("skipped: installing packages into a copy of this system takes root");
        return Ok(());
    }
    let scratch = Scratch::new("install")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", IN_A_COPY, "sh"]).arg(scratch.path()).arg(INSTALL);
    let output = command.arg(agent.parent().unwrap_or(Path::new("."))).env("ARCH", &arch).output()?;
    if output.status.code() == Some(77) {
        println!("skipped: this kernel gives no overlay over the running system: packages were not installed");
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    let answers: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once('=')).collect();
    let is = |name: &str, expected: &str| -> Result<()> {
        let found = answers.get(name).ok_or_else(|| anyhow!("{name} was not told: {said}"))?;
        ensure!(*found == expected, "{name} is `{found}`, not `{expected}`\n{said}");
        Ok(())
    };
    is("data", "trefoil:trefoil 700")?;
    is("shell", "/var/lib/trefoil:/usr/sbin/nologin")?;
    is("changed", "")?;
    ensure!(answers.get("agent").is_some_and(|version| version.starts_with("trefoil-agent ")), "{said}");
    // Debian's own tools enable units, where they are there.
    if apt::find_program("deb-systemd-helper").is_some() {
        is("enabled-trefoil", "yes")?;
        is("enabled-trefoil-agent", "yes")?;
    }
    match answers.get("verify") {
        Some(found) => ensure!(found.is_empty(), "systemd-analyze verify: {found}"),
        None => println!("skipped: not installed: systemd (systemd-analyze verify)"),
    }
    is("settings", "trefoil 600")?;
    // 124: the time was up, so it had served until then.
    is("served", "124 2")?;
    is("upgraded", "trefoil 600")?;
    is("kept", "trefoil 600")?;
    is("left", "")
}

/// The static agent; `None`, and a line, if there is none.
fn static_agent() -> Option<PathBuf> {
    let agent = env::var_os("TREFOIL_AGENT_STATIC").map(PathBuf::from).filter(|path| path.is_file());
    if agent.is_none() {
        println!("skipped: no static agent: cargo xtask package builds it");
    }
    agent
}

/// What a recipe makes of an empty root: its `COPY` lines carried out (`from` is the build's context), and its entry
/// point. What else there may be in such a file, this does not know.
fn build_recipe(recipe: &str, from: &Path, root: &Path) -> Result<Vec<String>> {
    let mut entry = None;
    for line in recipe.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let (word, rest) = line.split_once(' ').ok_or_else(|| anyhow!("`{line}`"))?;
        match (word, rest) {
            ("FROM", "scratch") => {}
            ("COPY", rest) => {
                let (source, target) = rest.split_once(' ').ok_or_else(|| anyhow!("`{line}`"))?;
                let target = root.join(target.trim_start_matches('/'));
                fs::create_dir_all(target.parent().unwrap_or(root))?;
                fs::copy(from.join(source), &target).with_context(|| line.to_owned())?;
            }
            ("ENTRYPOINT", rest) => entry = Some(serde_json::from_str(rest).with_context(|| line.to_owned())?),
            _ => bail!("the recipe has a line that this test does not know: {line}"),
        }
    }
    entry.ok_or_else(|| anyhow!("the recipe has no entry point"))
}

/// A container's view, made by hand: a read-only root with only the recipe's tree, `/etc/trefoil` and a ramfs at
/// `/run/trefoil`. `$1` is the tree, `$2` the settings' directory; the rest is run in it.
const CONTAINER: &str = r#"
set -eu
root=$1; settings=$2; shift 2
mkdir -p "$root/etc/trefoil" "$root/run/trefoil" "$root/proc"
mount --bind "$root" "$root"
mount --bind "$settings" "$root/etc/trefoil"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
mount -t ramfs -o mode=0700 ramfs "$root/run/trefoil"
exec chroot "$root" "$@"
"#;

#[test]
fn the_container_recipe_is_all_that_the_agent_needs_to_bootstrap() -> Result<()> {
    let Some(agent) = static_agent() else { return Ok(()) };
    if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools]) {
        println!("{why}");
        return Ok(());
    }
    if !sys::is_root() {
        println!("skipped: a root directory of one's own takes root");
        return Ok(());
    }
    let tpm = Swtpm::start(EkKind::P384AndRsa)?;
    tpm.play_firmware()?;
    let rig = Rig::new(Options { ca: Some(tpm.ca().clone()), ..Options::default() })?;
    let payload = rig.payload("boxed", &[("app.toml", b"answer = 42\n".as_slice())])?;
    let policy = rig.policy("boxed", &tpm, &[7], "[release]\nphase_pcr = 13\n")?;
    rig.node_add("boxed", &NodeAdd::id(rig.node_id(&tpm)?).payload(&payload).policy(policy))?;

    let settings = rig.dir().join("etc-trefoil");
    let server = rig.gateway().to_string();
    let dir = settings.to_string_lossy().into_owned();
    rig.trefoil(&["agent-config", "boxed", "--server", &server, "--dir", &dir, "--at", "/etc/trefoil"])?;
    let root = rig.dir().join("container");
    let recipe = fs::read_to_string(file("container/Containerfile.agent"))?;
    let context = agent.parent().ok_or_else(|| anyhow!("the static agent is nowhere"))?;
    let entry = build_recipe(&recipe, context, &root)?;

    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", CONTAINER, "sh"]).arg(&root).arg(&settings).args(&entry);
    command.args(["--tcti", &tpm.tcti(), "--log", "info"]);
    let agent = Program::start(Launch::new("agent in its container", command))?;
    rig.wait_phase("boxed", "delivered", SOON).map_err(|error| anyhow!("{error:#}\n{}", agent.tail(20)))?;
    rig.wait_trust("boxed", "good", SOON)?;
    let inside = PathBuf::from(format!("/proc/{}/root/run/trefoil/payload/app.toml", agent.pid()));
    ensure!(fs::read(inside)? == b"answer = 42\n", "the payload is another");
    ensure!(agent.stop(SOON)?.code().is_some_and(|code| code == 128 + sys::SIGTERM), "{}", agent.tail(10));
    Ok(())
}

#[test]
fn the_agent_works_as_root_without_any_capability() -> Result<()> {
    let Some(agent) = static_agent() else { return Ok(()) };
    if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools]) {
        println!("{why}");
        return Ok(());
    }
    if !sys::is_root() || apt::find_program("setpriv").is_none() {
        println!("skipped: dropping capabilities takes root and setpriv");
        return Ok(());
    }
    let tpm = Swtpm::start(EkKind::P384AndRsa)?;
    tpm.play_firmware()?;
    let rig = Rig::new(Options { ca: Some(tpm.ca().clone()), ..Options::default() })?;
    let payload = rig.payload("bare", &[("app.toml", b"answer = 42\n".as_slice())])?;
    let policy = rig.policy("bare", &tpm, &[7], "[release]\nphase_pcr = 13\n")?;
    rig.node_add("bare", &NodeAdd::id(rig.node_id(&tpm)?).payload(&payload).policy(policy))?;
    let config = rig.agent_config("bare")?;
    let home = rig.memory()?.join("bare");
    fs::create_dir(&home)?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
    // As `--cap-drop=all --security-opt=no-new-privileges` of a container engine has it.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]).arg(&agent);
    command.arg("--config").arg(&config).args(["--tcti", &tpm.tcti(), "--log", "info"]);
    command.arg("--payload-dir").arg(home.join("payload"));
    command.arg("--cryptsetup-keys-dir").arg(home.join("disk-keys"));
    let agent = Program::start(Launch::new("agent without capabilities", command))?;
    rig.wait_phase("bare", "delivered", SOON).map_err(|error| anyhow!("{error:#}\n{}", agent.tail(20)))?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.worker_pid().unwrap_or(agent.pid())))?;
    ensure!(status.contains("CapEff:\t0000000000000000"), "{status}");
    Ok(())
}

/// The system calls of one of systemd's sets, sets within it resolved.
fn calls_of(set: &str) -> Result<BTreeSet<String>> {
    let said = spawn::run(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", set]))?;
    let mut calls = BTreeSet::new();
    for word in said.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if word.starts_with('@') {
            calls.extend(calls_of(word)?);
        } else {
            calls.insert(word.to_owned());
        }
    }
    Ok(calls)
}

/// What a unit's `SystemCallFilter=` lines, an allow-list first, come to.
fn allowed_by(unit: &str) -> Result<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (denied, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for name in names.split_whitespace() {
            let calls = if name.starts_with('@') { calls_of(name)? } else { BTreeSet::from([name.to_owned()]) };
            if denied {
                allowed.retain(|call| !calls.contains(call));
            } else {
                allowed.extend(calls);
            }
        }
    }
    Ok(allowed)
}

#[test]
fn the_agents_unit_allows_every_system_call_of_a_whole_life() -> Result<()> {
    let Some(agent) = static_agent() else { return Ok(()) };
    if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools, Tool::Strace]) {
        println!("{why}");
        return Ok(());
    }
    if apt::find_program("systemd-analyze").is_none() {
        println!("skipped: not installed: systemd (its sets of system calls)");
        return Ok(());
    }
    let tpm = Swtpm::start(EkKind::P384AndRsa)?;
    tpm.play_firmware()?;
    let rig = Rig::new(Options { ca: Some(tpm.ca().clone()), ..Options::default() })?;
    let payload = rig.payload("traced", &[("autorun", b"#!/bin/sh\nexit 0\n".as_slice())])?;
    fs::set_permissions(payload.join("autorun"), fs::Permissions::from_mode(0o755))?;
    let policy = rig.policy("traced", &tpm, &[7], "[release]\nphase_pcr = 13\n")?;
    let node = NodeAdd::id(rig.node_id(&tpm)?).payload(&payload).policy(policy).arg("--autorun");
    rig.node_add("traced", &node.arg("--interval").arg("1s"))?;
    let config = rig.agent_config("traced")?;
    let home = rig.memory()?.join("traced");
    fs::create_dir(&home)?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
    let trace = rig.dir().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).arg(&agent);
    command.arg("--config").arg(&config).args(["--tcti", &tpm.tcti(), "--autorun=on", "--log", "info"]);
    command.arg("--payload-dir").arg(home.join("payload"));
    command.arg("--cryptsetup-keys-dir").arg(home.join("disk-keys"));
    let agent = Program::start(Launch::new("traced agent", command))?;
    rig.wait_phase("traced", "delivered", SOON).map_err(|error| anyhow!("{error:#}\n{}", agent.tail(20)))?;
    rig.wait_trust("traced", "good", SOON)?;
    rig.wait_event("traced", "autorun", SOON)?;
    // strace passes no signal on; its child is the agent.
    sys::signal(agent.worker_pid().context("the agent has ended")?, sys::SIGTERM)?;
    agent.wait_exit(SOON)?;

    let text = fs::read_to_string(&trace)?;
    // `PID name(…`; what is no call begins otherwise (`+++`, `---`, `<...`).
    let used: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.contains(' '))
        .collect();
    ensure!(used.contains("execve") && used.contains("connect") && used.len() > 20, "the trace shows {used:?}");
    let unit = fs::read_to_string(file("systemd/trefoil-agent.service"))?;
    let allowed = allowed_by(&unit)?;
    ensure!(!allowed.contains("ptrace") && !allowed.contains("mount"), "the unit allows nearly everything");
    let refused: Vec<_> = used.iter().filter(|name| !allowed.contains(**name)).collect();
    ensure!(refused.is_empty(), "the unit refuses what the agent does: {refused:?}");
    Ok(())
}

/// Boots systemd in namespaces of its own, on an overlay of this system in which the packages are installed: `$1` is an
/// empty directory, `$2` the packages, `$3` what is shared with the test (settings, the probe, the console), `$4` and `$5`
/// the next two scripts. 77: no overlay; 78: no cgroups.
const SYSTEMD: &str = r#"
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/cgroup"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root" 2>/dev/null || exit 77
mount -t cgroup2 none "$1/cgroup" 2>/dev/null || exit 78
own="$1/cgroup/trefoil-test-$$"
mkdir "$own" 2>/dev/null || exit 78
(
    sh -c 'echo $PPID' >"$own/cgroup.procs" || exit 78
    exec unshare --mount --pid --fork --kill-child=KILL --uts --ipc --cgroup sh -c "$4" sh "$1/root" "$2" "$3"
) && status=0 || status=$?
find "$own" -depth -type d -exec rmdir {} \;
exit "$status"
"#;

/// The inside of that: kernel settings and devices are read-only or left out, so that systemd sets nothing of this machine.
const SYSTEMD_ROOT: &str = r#"
set -eu
root=$1
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
for dir in run tmp; do mount -t tmpfs none "$root/$dir"; done
mount -t tmpfs -o mode=755 none "$root/dev"
for node in null zero full random urandom tty; do touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
touch "$root/dev/console"
mount --bind "$3/console" "$root/dev/console"
mount --bind "$2" "$root/mnt"
mount --bind "$3" "$root/srv"
: >"$root/etc/fstab"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
chroot "$root" sh -c '
    set -eu
    rm -f /etc/systemd/system/*.wants/*
    dpkg --install /mnt/trefoil_*_"$ARCH".deb /mnt/trefoil-agent_*_"$ARCH".deb
    rm -f /etc/systemd/system/*.wants/*
    trefoil init --operator-dir /tmp/operator --name localhost
    printf "[gateway]\nlisten = \"127.0.0.1:0\"\n[api]\nlisten = \"127.0.0.1:0\"\n" >/var/lib/trefoil/trefoil.toml
    chown -R trefoil:trefoil /var/lib/trefoil
    mkdir -p /etc/trefoil
    cp /srv/settings/* /etc/trefoil/
    cp /srv/probe.service /etc/systemd/system/
' >"$3/installed" 2>&1
# Not by chroot: who is in one may make no user namespace, and the control plane's unit wants one.
cd "$root"
mkdir old
pivot_root . old
cd /
umount -l /old
export container=other
exec /lib/systemd/systemd --system --unit=probe.service --show-status=no --log-target=journal
"#;

/// Starts both services and says what became of them, until the test has seen enough.
const PROBE: &str = r#"
echo booted=yes
systemctl start trefoil.service trefoil-agent.service
echo "started=$?"
left=120
while [ ! -e /srv/done ] && [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
echo "payload=$(cat /run/trefoil/payload/app.toml)"
echo "memory=$(stat -f -c %T /run/trefoil) $(stat -c %a /run/trefoil)"
for unit in trefoil trefoil-agent; do
    pid=$(systemctl show -P MainPID "$unit")
    echo "$unit=$(systemctl is-active "$unit") $(systemctl show -P NRestarts "$unit") $(stat -c %U "/proc/$pid")"
    echo "$unit-status=$(grep -E '^(CapBnd|NoNewPrivs|Seccomp):' "/proc/$pid/status" | tr -s '\t\n' '  ')"
done
echo "log:"
journalctl --no-pager --output=cat --unit=trefoil.service --unit=trefoil-agent.service | tail -n 40
systemctl exit
"#;

#[test]
fn both_units_run_under_systemd_in_their_sandboxes_and_the_payload_is_delivered() -> Result<()> {
    let arch = host_arch()?;
    let (Some(agent), Some(_)) = (package("trefoil-agent", &arch)?, package("trefoil", &arch)?) else { return Ok(()) };
    if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools]) {
        println!("{why}");
        return Ok(());
    }
    if !sys::is_root() || !Path::new("/lib/systemd/systemd").is_file() {
        println!("skipped: running the units takes root and an installed systemd");
        return Ok(());
    }
    let tpm = Swtpm::start(EkKind::P384AndRsa)?;
    tpm.play_firmware()?;
    let rig = Rig::new(Options { ca: Some(tpm.ca().clone()), ..Options::default() })?;
    let payload = rig.payload("unit", &[("app.toml", b"answer = 42\n".as_slice())])?;
    let policy = rig.policy("unit", &tpm, &[7], "[release]\nphase_pcr = 13\n")?;
    let node = NodeAdd::id(rig.node_id(&tpm)?).payload(&payload).policy(policy);
    rig.node_add("unit", &node.arg("--interval").arg("1s"))?;

    let shared = rig.dir().join("shared");
    let dir = shared.join("settings").to_string_lossy().into_owned();
    let server = rig.gateway().to_string();
    fs::create_dir(&shared)?;
    rig.trefoil(&["agent-config", "unit", "--server", &server, "--dir", &dir, "--at", "/etc/trefoil"])?;
    let conf = shared.join("settings/agent.conf");
    let text = fs::read_to_string(&conf)?;
    fs::write(&conf, format!("{text}tcti = {}\n", tpm.tcti()))?;
    fs::write(shared.join("console"), "")?;
    fs::write(shared.join("probe.sh"), PROBE)?;
    let service = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'exec sh /srv/probe.sh >/srv/said 2>&1'\n";
    fs::write(shared.join("probe.service"), service)?;

    let empty = Scratch::new("systemd")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SYSTEMD, "sh"]).arg(empty.path());
    command.arg(agent.parent().unwrap_or(Path::new("."))).arg(&shared).arg(SYSTEMD_ROOT).env("ARCH", &arch);
    let systemd = Program::start(Launch::new("systemd in namespaces", command))?;
    let said = || {
        let read = |name: &str| fs::read_to_string(shared.join(name)).unwrap_or_default();
        format!("{}\n{}\n{}\n{}", read("installed"), read("console"), read("said"), systemd.tail(10))
    };
    // Installing is the longer part of it; a system that is not up by then has no right to be.
    let deadline = std::time::Instant::now() + 3 * SOON;
    while !fs::read_to_string(shared.join("said")).is_ok_and(|text| text.contains("started=")) {
        if !systemd.is_running() {
            return match systemd.wait_exit(SOON)?.code() {
                Some(77 | 78) => {
                    println!("skipped: this machine gives no overlay or no cgroups: the units were not run");
                    Ok(())
                }
                _ => Err(anyhow!("systemd ended\n{}", said())),
            };
        }
        ensure!(std::time::Instant::now() < deadline, "systemd is not up\n{}", said());
        std::thread::sleep(Duration::from_millis(100));
    }
    let seen = rig.wait_phase("unit", "delivered", SOON).and_then(|_| rig.wait_trust("unit", "good", SOON));
    fs::write(shared.join("done"), "")?;
    let ended = systemd.wait_exit(SOON);
    seen.map_err(|error| anyhow!("{error:#}\n{}", said()))?;
    ended.map_err(|error| anyhow!("{error:#}\n{}", said()))?;

    let text = fs::read_to_string(shared.join("said"))?;
    let answers: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let is = |name: &str, expected: &dyn Fn(&str) -> bool| -> Result<()> {
        ensure!(answers.get(name).is_some_and(|found| expected(found)), "{name}: {:?}\n{}", answers.get(name), said());
        Ok(())
    };
    is("started", &|found| found == "0")?;
    is("payload", &|found| found == "answer = 42")?;
    is("memory", &|found| ["ramfs 700", "tmpfs 700"].contains(&found))?;
    is("trefoil", &|found| found == "active 0 trefoil")?;
    is("trefoil-agent", &|found| found == "active 0 root")?;
    is("trefoil-status", &|found| {
        found.contains("CapBnd: 0000000000000000") && found.contains("NoNewPrivs: 1") && found.contains("Seccomp: 2")
    })?;
    is("trefoil-agent-status", &|found| found.contains("NoNewPrivs: 1") && found.contains("Seccomp: 2"))
}
