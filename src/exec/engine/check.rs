//! What is found out about a profile before any work.

use crate::diag::Diagnostic;
use crate::exec::{Away, ExecError};
use crate::store::Store;

/// Looks whether jobs of a profile can do their work. Errs with all that is wrong.
pub fn check(away: &Away, store: &Store) -> Result<Vec<Diagnostic>, ExecError> {
    let _ = (away, store);
    Ok(Vec::new())
}
