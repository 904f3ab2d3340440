//! What can go wrong between ranks.

/// What can go wrong between ranks. A rank is named by its number, from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TeamError {
    /// A rank that ended, or is not heard of any more.
    #[error("rank {rank} of {ranks} is lost: {what}")]
    Lost {
        /// Which.
        rank: usize,
        /// How many there are.
        ranks: usize,
        /// How one can tell.
        what: String,
    },
    /// A rank that says that it cannot go on.
    #[error("rank {rank}: {what}")]
    Failed {
        /// Which.
        rank: usize,
        /// What it says.
        what: String,
    },
    /// Ranks that do not find each other.
    #[error("the ranks did not come together: {what}")]
    Join {
        /// Which are missing, and why.
        what: String,
    },
    /// Ranks that are not alike.
    #[error("the ranks do not fit together: {what}")]
    Mismatch {
        /// In what they differ.
        what: String,
    },
    /// A number of ranks, or a place among them, that cannot be.
    #[error("{what}")]
    Launch {
        /// What is wrong.
        what: String,
    },
    /// Ranks that do not do the same: a bug.
    #[error("the ranks are out of step: {what}")]
    OutOfStep {
        /// What came instead of what.
        what: String,
    },
}
