//! What the demo measured, and the budget beside it.

use std::fmt;
use std::time::Duration;

use hil_tests::spawn::Step;

use super::table::Table;

/// The figures; what could not be measured is left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Bytes of the static agent.
    agent_len: u64,
    /// Peak resident memory of the agent's worker, kB.
    pub(crate) agent_peak_kb: Option<u64>,
    /// Peak resident memory of the control plane, kB.
    pub(crate) server_peak_kb: Option<u64>,
    /// From the changed PCR to the withdrawn trust.
    pub(crate) withdrawn: Option<Duration>,
    /// From each agent's start until its payload was in place, ms.
    to_payload_ms: Vec<f64>,
    /// Part of it inside the TPM, ms, of the first node.
    in_tpm_ms: Option<f64>,
    /// The same for a node that is known already, after a reboot, ms.
    pub(crate) second_boot_ms: Option<f64>,
    enrolment: Traffic,
    bootstrap: Traffic,
    round: Option<Round>,
}

/// Requests, and their bytes as TLS records, handshake included.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    requests: usize,
    up: f64,
    down: f64,
}

/// A steady attestation, on average.
#[derive(Clone, Copy, Debug)]
struct Round {
    count: usize,
    ms: f64,
    up: f64,
    down: f64,
    cpu_ms: f64,
}

impl Figures {
    /// Nothing measured yet but the static agent's size in bytes.
    pub(crate) fn new(agent_len: u64) -> Self {
        Self { agent_len, ..Self::default() }
    }

    /// Takes the bootstrap's figures: time of all nodes, traffic of the first.
    pub(crate) fn bootstrap(&mut self, table: &Table, names: &[String]) {
        let steps = table.steps();
        for name in names {
            // The payload is in place when the agent asks for its confirmation.
            self.to_payload_ms.extend(table.agent_step_after_start(name, "confirm"));
        }
        // One node's own count; the others' are alike.
        let Some(program) = names.first().map(|name| format!("agent {name}")) else { return };
        let finished = steps.iter().filter(|step| step.program == program && step.text("phase") == "end");
        for step in finished {
            match step.step.as_str() {
                "hello" | "enrol" | "activate" => self.enrolment.add(step),
                // The agent's own summary.
                "delivered" => {
                    self.in_tpm_ms = step.number("tpm_ms");
                    return;
                }
                _ => self.bootstrap.add(step),
            }
        }
    }

    /// Takes the figures of steady attestations: as the control plane saw them, as one agent counted their bytes, and
    /// the CPU time the control plane spent meanwhile.
    pub(crate) fn steady(&mut self, rounds: &[Step], answers: &[Step], cpu: Duration) {
        let mean = |steps: &[Step], field: &str| {
            let values: Vec<f64> = steps.iter().filter_map(|step| step.number(field)).collect();
            if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
        };
        if rounds.is_empty() {
            return;
        }
        self.round = Some(Round {
            count: rounds.len(),
            ms: mean(rounds, "ms"),
            up: mean(answers, "up"),
            down: mean(answers, "down"),
            cpu_ms: cpu.as_secs_f64() * 1e3 / rounds.len() as f64,
        });
    }
}

impl Traffic {
    fn add(&mut self, step: &Step) {
        self.requests += 1;
        self.up += step.number("up").unwrap_or(0.0);
        self.down += step.number("down").unwrap_or(0.0);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |what: &str, found: String, budget: &str| {
            let budget = if budget.is_empty() { String::new() } else { format!("(budget {budget})") };
            writeln!(f, "{}", format!("  {what:<40} {found:<26} {budget}").trim_end())
        };
        row("Figures of this run", String::new(), "")?;
        if let Some(worst) = self.to_payload_ms.iter().copied().reduce(f64::max) {
            let many = if self.to_payload_ms.len() > 1 { ", slowest" } else { "" };
            row("agent start -> payload", format!("{worst:.0} ms{many}"), "150 ms")?;
        }
        if let Some(ms) = self.in_tpm_ms {
            row("  of it inside the TPM", format!("{ms:.0} ms"), "")?;
        }
        if let Some(ms) = self.second_boot_ms {
            row("  of a known node, after a TPM reset", format!("{ms:.0} ms"), "50 ms")?;
        }
        for (what, traffic) in [("enrolment", self.enrolment), ("bootstrap", self.bootstrap)] {
            let text = format!("{} round trips, {:.0} up, {:.0} down", traffic.requests, traffic.up, traffic.down);
            row(&format!("{what}, bytes in TLS records"), text, "")?;
        }
        if let Some(round) = self.round {
            let mean = format!("mean of {}", round.count);
            row(&format!("one attestation, {mean}"), format!("{:.2} ms", round.ms), "3 ms")?;
            row("  bytes in TLS records", format!("{:.0} up, {:.0} down", round.up, round.down), "400 up, 250 down")?;
            row("  control-plane CPU", format!("{:.2} ms", round.cpu_ms), "0.35 ms")?;
        }
        if let Some(withdrawn) = self.withdrawn {
            let budget = format!("{:.1} s", f64::from(super::INTERVAL_S) + 0.2);
            row("changed PCR -> trust withdrawn", format!("{:.2} s", withdrawn.as_secs_f64()), &budget)?;
        }
        row("static agent", format!("{} bytes", self.agent_len), "800000 bytes")?;
        if let Some(kb) = self.agent_peak_kb {
            row("agent's peak memory", format!("{kb} kB"), "1000 kB")?;
        }
        if let Some(kb) = self.server_peak_kb {
            row("control plane's peak memory", format!("{kb} kB"), "40000 kB")?;
        }
        Ok(())
    }
}
