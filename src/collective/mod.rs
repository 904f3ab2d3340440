//! Ranks: processes that compute one thing together, here or on several machines, and add up what each has found.
//!
//! A [`Team`] is this process's end of connections to every other rank. Its operations are collective: each rank calls the
//! same ones in the same order. What is summed is added in an order that does not depend on time, nor on how many ranks
//! there are ([`Branch`]). A rank that is lost ends the team: every operation errs from then on, and names it.
//!
//! The parts: who this process is ([`Launch`]), where the ranks find each other ([`Rendezvous`], a secret [`Token`] lets
//! them in), the connections (`link`, in frames), and what they carry (`team`).
//!
//! What is sent is signed in at the start and not encrypted: as between the ranks of MPI or NCCL, the network is trusted
//! not to read along.

mod error;
mod frame;
mod handshake;
mod launch;
mod link;
mod rendezvous;
mod team;
#[cfg(test)]
mod tests;
mod token;
mod tree;

pub use error::TeamError;
pub use launch::{Launch, Task};
pub use rendezvous::{Door, Meeting, Rendezvous};
pub use team::{Line, Team};
pub use token::Token;
pub use tree::{Branch, Stack, shares};

/// Ranks of a team at most. What is summed comes in as many parts, so that more would have nothing to do.
pub const MOST_RANKS: usize = 16;
