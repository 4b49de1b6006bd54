//! The gateway: the listener that agents dial, and one session a connection. It authenticates itself to agents, moves
//! bytes and counts strangers; it holds no share, no policy, and no say about trust.

mod agent;
mod listener;
mod registry;
mod session;

pub use agent::{Agent, AgentError};
pub use listener::{Gateway, GatewayOptions};
pub use registry::Registry;
