//! The agent's core on a microcontroller without an operating system, complete but for the board.
//!
//! What a board brings (a TLS connection, a TPM on SPI, a clock, flash for the payload) is one value that the compiler
//! knows nothing of, so that all of the core and of `protocol` below it is linked, and nothing of a board is counted.
//! TLS is not in it: that half of the agent is in its program.
#![no_std]
#![no_main]

extern crate alloc;

mod board;

use agent_minimal::machine::{Input, Machine, Output, PayloadWork};
use alloc::boxed::Box;
// Brings what the heap is locked by.
use cortex_m as _;
use cortex_m_rt::entry;
use embedded_alloc::LlffHeap;
use panic_halt as _;

/// Bytes of heap; linked as the symbol `HEAP_MEM`, by which it can be told from the core's own memory.
const HEAP_LEN: usize = 96 * 1024;

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();

#[entry]
fn main() -> ! {
    // SAFETY: called once, before anything is allocated.
    unsafe {
        embedded_alloc::init!(HEAP, HEAP_LEN);
    }
    loop {
        let facts = board::facts();
        if let Ok(mut machine) = Machine::new(&facts, board::now_ms()) {
            connection(&mut machine);
        }
    }
}

/// One connection: until the machine has had enough, or refuses what it is given.
fn connection(machine: &mut Machine<'_>) {
    loop {
        let sent = board::send(machine.outgoing());
        machine.sent(sent);
        let now_ms = board::now_ms();
        let received = board::receive(machine.poll_timeout());
        let input = match machine.poll_output(now_ms) {
            Some(Output::Close(_)) => return,
            Some(output) => work(machine, &output),
            None if received.is_empty() && machine.is_bound() => Some(Input::Silence),
            None if received.is_empty() => Some(Input::Tick),
            None => Some(Input::Bytes(&received)),
        };
        if let Some(input) = input
            && machine.handle_input(now_ms, board::unix_s(), input).is_err()
        {
            return;
        }
    }
}

/// Does the board's part of what the machine asks for.
fn work(machine: &Machine<'_>, output: &Output) -> Option<Input<'static>> {
    match output {
        Output::Seed => Some(Input::Nk(board::nk())),
        Output::Activate(credential) => board::activate(credential).map(Input::Activated),
        Output::Quote(order) => Some(match board::quote(order) {
            Some(quoted) => Input::Quoted(Box::new(quoted)),
            None => Input::QuoteFailed("the TPM did not quote"),
        }),
        Output::ReadLog { token, block, .. } => {
            let log = board::log();
            let token = *token;
            Some(match machine.slice(*block, log.len()) {
                Some(slice) => Input::Log { token, slice, bytes: log },
                None => Input::NoLog { token, why: "no such part" },
            })
        }
        Output::Payload(work) => match board::store(work) {
            Err(kind) => Some(Input::PayloadFailed { kind, why: "not stored" }),
            Ok(()) => match work {
                PayloadWork::Place(_) => Some(Input::Placed),
                PayloadWork::ExtendDelivered => Some(Input::DeliveredExtended),
                _ => None,
            },
        },
        Output::Autorun => Some(Input::AutorunEnded { code: board::code(), text: &[] }),
        _ => None,
    }
}
