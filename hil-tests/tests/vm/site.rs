//! What the scenarios on whole machines stand on: a control plane that guests reach, and machines that are its nodes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hil_tests::events::{self, Event};
use hil_tests::rig::{NodeAdd, Options, Rig};
use hil_tests::spawn::Step;
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use hil_tests::vm::{self, Appliance, Boot, Kernel, Machine, Vm};
use serde_json::Value;

/// Longer than anything takes that is going to happen in a guest that is up.
pub(crate) const SOON: Duration = Duration::from_secs(180);
/// What the nodes are to get.
pub(crate) const PAYLOAD: [(&str, &str); 2] = [("app.toml", "answer = 42\n"), ("keys/disk.key", "only for good\n")];
/// A word in the initramfs that scenarios change.
pub(crate) const WORD: &str = "good";
/// Both appraisers.
pub(crate) const ROLES: [&str; 2] = ["verifier", "tenant"];

/// Leaves a test early, with a word, where the machine lacks what it takes.
#[macro_export]
macro_rules! need_vm {
    () => {
        if let Some(why) = hil_tests::rig::missing(&hil_tests::vm::TOOLS) {
            println!("{why}");
            return Ok(());
        }
    };
}

/// A control plane whose certificate names it as guests call it, and a kernel.
pub(crate) struct Site {
    pub(crate) rig: Rig,
    pub(crate) kernel: Kernel,
    ca: Arc<SwtpmCa>,
    payload: PathBuf,
}

impl Site {
    /// The one that the tests share which run at the same time; it ends with the last of them.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Site>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = shared.upgrade() {
            return Ok(site);
        }
        let ca = SwtpmCa::new()?;
        let init = vec!["--ip".into(), vm::HOST.into()];
        let rig = Rig::new(Options { ca: Some(Arc::clone(&ca)), init, ..Options::default() })?;
        let payload = rig.payload("vm", &PAYLOAD.map(|(name, content)| (name, content.as_bytes())))?;
        let site = Arc::new(Self { rig, kernel: Kernel::debian()?, ca, payload });
        *shared = Arc::downgrade(&site);
        Ok(site)
    }

    /// A machine that is the node `name`, admitted by its id, with the payload, no policy, and a round each second.
    pub(crate) fn machine(self: &Arc<Self>, name: &str) -> Result<Node> {
        let tpm = Swtpm::start_with(EkKind::P256, &self.ca)?;
        let node = NodeAdd::id(self.rig.node_id(&tpm)?).payload(&self.payload).arg("--interval").arg("1s");
        self.rig.node_add(name, &node)?;
        Ok(Node { machine: Machine::new(tpm)?, site: Arc::clone(self), name: name.to_owned() })
    }
}

/// A machine and its name at the control plane.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) site: Arc<Site>,
    pub(crate) name: String,
}

impl Node {
    /// Writes the node's initramfs, which is the same each time but for one word in it. The word's length has to be that
    /// of [`WORD`]: QEMU writes the initramfs's size into the kernel's header, and so into what firmware measures.
    pub(crate) fn initrd(&self, word: &str) -> Result<PathBuf> {
        ensure!(word.len() == WORD.len());
        let settings = self.machine.dir().join("settings");
        if !settings.exists() {
            let server = format!("{}:{}", vm::HOST, self.site.rig.gateway().port());
            let dir = settings.to_str().context("the scratch path is not text")?;
            let what = ["agent-config", &self.name, "--server", &server, "--dir", dir, "--at", "/etc/trefoil"];
            self.site.rig.trefoil(&what)?;
        }
        let appliance = Appliance::new(&self.site.kernel)?.settings(&settings)?;
        let path = self.machine.dir().join(format!("initrd-{word}"));
        appliance.file("etc/motd", 0o644, word.as_bytes()).write(&path)?;
        Ok(path)
    }

    /// A boot of Debian's kernel with the node's initramfs.
    pub(crate) fn boot(&self) -> Result<Boot> {
        Ok(Boot::new(&self.site.kernel.image, &self.initrd(WORD)?))
    }

    /// Boots for the first time, makes the evidence of that the node's policy, and waits until it has its payload by it.
    pub(crate) fn first_boot(&self, boot: &Boot) -> Result<Vm> {
        let vm = self.machine.power_on(boot)?;
        vm.wait_ready()?;
        self.learn()?;
        self.is_delivered(&vm, 0)?;
        Ok(vm)
    }

    /// Makes what the node looks like now its policy, for both roles.
    pub(crate) fn learn(&self) -> Result<String> {
        let rig = &self.site.rig;
        rig.wait_node(&self.name, "evidence", SOON, |node| !node["last_verdict"].is_null())?;
        let text = rig.trefoil(&["policy", "learn", &self.name])?;
        let path = self.machine.dir().join("learned.toml");
        std::fs::write(&path, &text)?;
        rig.trefoil(&["node", "set", &self.name, "--policy", path.to_str().context("a path that is not text")?])?;
        Ok(text)
    }

    /// The newest confirmed delivery, milliseconds since 1970; 0 before the first.
    pub(crate) fn delivered_ms(&self) -> Result<i64> {
        Ok(self.site.rig.node(&self.name)?["delivered"]["at_ms"].as_i64().unwrap_or_default())
    }

    /// Waits until the node has its payload by a delivery after `before_ms`: so says the agent in the guest, so says the
    /// tenant, so says the verifier of its trust, and so do its files.
    pub(crate) fn is_delivered(&self, vm: &Vm, before_ms: i64) -> Result<()> {
        let rig = &self.site.rig;
        rig.wait_node(&self.name, "a delivery and trust", SOON, |node| {
            let at_ms = node["delivered"]["at_ms"].as_i64();
            node["phase"] == "delivered" && node["trust"] == "good" && at_ms.is_some_and(|at_ms| at_ms > before_ms)
        })?;
        let line = vm.wait_for_line("vm: agent ended with ", SOON)?;
        ensure!(line.ends_with(" 0"), "{line}");
        for (name, content) in PAYLOAD {
            let found = vm.run(&format!("cat /run/trefoil/payload/{name}"))?;
            ensure!(found == content, "{name} holds {found:?}");
        }
        Ok(())
    }

    /// Waits for a verdict of this role that was asked for after `after_ms`, and that `wanted` accepts; gives the newest.
    pub(crate) fn verdict(&self, role: &str, after_ms: i64, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let rig = &self.site.rig;
        let path = format!("/nodes/{}/verdicts?limit=100", self.name);
        let mut found = None;
        rig.wait_node(&self.name, &format!("the verdict of the {role} that the scenario wants"), SOON, |_| {
            let answer = rig.api_get(&path).unwrap_or_default();
            let mut all = events::items(&answer).iter();
            let is_it = |verdict: &&Value| {
                let late = verdict["at_ms"].as_i64().is_some_and(|at_ms| at_ms > after_ms);
                late && verdict["role"] == role && wanted(verdict)
            };
            found = all.find(is_it).cloned();
            found.is_some()
        })?;
        found.context("no verdict")
    }

    /// Waits until this role has judged another boot than the one before, from its beginning and as good, after
    /// `after_ms`. The control plane keeps only the newest of several positive verdicts, so its log is asked.
    pub(crate) fn judged_anew(&self, role: &str, after_ms: i64) -> Result<()> {
        let id = self.site.rig.node(&self.name)?["node_id"].as_str().context("no node id")?.to_owned();
        let wanted = |step: &Step| {
            let of_node = step.step == "verdict" && step.text("node") == id && step.text("from") == role;
            of_node
                && step.text("epoch") == "new_boot"
                && step.text("outcome") == "Good"
                && step.at_ms > after_ms as f64
        };
        self.site.rig.server()?.wait_for_step(0, SOON, wanted).map(drop)
    }

    /// Waits for an event of this kind in the node's own history, and gives it.
    pub(crate) fn event(&self, kind: &str) -> Result<Event> {
        let rig = &self.site.rig;
        let mut found = None;
        rig.wait_node(&self.name, &format!("an event `{kind}`"), SOON, |_| {
            found = rig.events(&self.name).unwrap_or_default().into_iter().find(|event| event.kind == kind);
            found.is_some()
        })?;
        found.context("no event")
    }

    /// The findings of a verdict.
    pub(crate) fn findings(verdict: &Value) -> Result<&[Value]> {
        verdict["explanation"]["findings"].as_array().map(Vec::as_slice).context("a verdict without findings")
    }

    /// How often shares are on record as having left for the node.
    pub(crate) fn releases(&self) -> Result<usize> {
        let answer = self.site.rig.api_get(&format!("/nodes/{}/releases?limit=100", self.name))?;
        Ok(answer["releases"].as_array().context("no releases")?.len())
    }

    /// Runs an agent in the guest that wants a payload and gets none: neither an exit status of success nor a file. The
    /// guest's own agent is sent away before, for good.
    pub(crate) fn gets_nothing(&self, vm: &Vm) -> Result<()> {
        vm.run("touch /run/quiet; killall trefoil-agent; true")?;
        let agent = "trefoil-agent --once --timeout 20 --payload-dir /run/other/payload 2>&1";
        let (status, said) = vm.run_within(agent, SOON)?;
        ensure!(status == REFUSED, "the agent ended with {status}\n{said}");
        let found = vm.run("find /run/trefoil /run/other -type f")?;
        ensure!(found.is_empty(), "the guest has {found}");
        Ok(())
    }

    /// The TPM's resetCount and restartCount, as the guest reads them (TPM2_ReadClock, TPM 2.0 part 3).
    pub(crate) fn counters(&self, vm: &Vm) -> Result<(u32, u32)> {
        let response = tpm_command(vm, "/dev/tpmrm0", &[0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81])?;
        // Behind the header: time (8 bytes), clock (8), the two counters, safe.
        let count = |at: usize| -> Result<u32> {
            let bytes = response.get(at..at + 4).context("a short answer to TPM2_ReadClock")?;
            Ok(u32::from_be_bytes(bytes.try_into()?))
        };
        Ok((count(26)?, count(30)?))
    }

    /// The control plane's clock.
    pub(crate) fn now_ms(&self) -> Result<i64> {
        self.site.rig.node(&self.name)?["now_ms"].as_i64().context("no clock")
    }
}

/// Sends one command to the guest's TPM, by nothing but a shell, and gives the response if it is a success.
pub(crate) fn tpm_command(vm: &Vm, device: &str, command: &[u8]) -> Result<Vec<u8>> {
    let octal: String = command.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let script = format!(
        "exec 3<>{device} && printf '{octal}' >&3 && dd bs=4096 count=1 <&3 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'"
    );
    let said = vm.run(&script)?;
    let response = hex::decode(said.trim()).with_context(|| format!("the TPM said {said}"))?;
    ensure!(response.get(6..10) == Some(&[0; 4]), "the TPM answers {}", hex::encode(&response));
    Ok(response)
}

/// The agent's exit status when a gateway proved itself and answered, and no payload was given.
const REFUSED: i32 = 4;
