//! `sami worker JOB`: one attempt at a node, in a process of its own.

use std::path::Path;

use super::ExecError;

/// Executes the attempt of a job file. Returns the process's exit code: 0 done, 1 failed, 130 interrupted.
pub fn work(job: &Path) -> Result<u8, ExecError> {
    Err(ExecError::BadJob { path: job.to_owned(), what: "not built".into() })
}
