//! An index that was made beside is put in its place.
//!
//! Others may have the present one open, and SQLite finds the journal of a file by its name: whoever read a file that was
//! replaced would take the journal of the new one for that of the old, and play it back. So what is in the file becomes
//! what is in the new one, as a write like any other, which waits for others and is waited for; a file takes the place of
//! another only if that is no database.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::configure;
use crate::fs;
use crate::store::StoreError;

/// For how long others that read or write are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Puts `made` in the place of `path`, whatever is there.
pub(super) fn put(made: &Path, path: &Path) -> Result<(), StoreError> {
    // Before the first index no one has one open; another process may be first.
    if !path.exists() && fs::hard_link(made, path).is_ok_and(|linked| linked) {
        fs::discard(made);
        return Ok(());
    }
    match write_over(made, path) {
        Ok(()) => {
            fs::discard(made);
            return Ok(());
        }
        Err(error) if is_busy(&error) => return Err(error.into()),
        Err(error) => tracing::debug!("what is in the place of the index cannot be written over: {error}"),
    }
    // Its journal must not be played into the new one.
    let journal = path.with_extension("sqlite-journal");
    if journal.is_dir() {
        fs::remove_directory(&journal)?;
    } else {
        fs::remove_file(&journal)?;
    }
    Ok(fs::rename(made, path)?)
}

fn write_over(made: &Path, path: &Path) -> rusqlite::Result<()> {
    let source = Connection::open_with_flags(made, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let mut target =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    configure(&target)?;
    let backup = Backup::new(&source, &mut target)?;
    let since = Instant::now();
    loop {
        match backup.step(i32::MAX)? {
            StepResult::Done => return Ok(()),
            StepResult::Busy | StepResult::Locked if since.elapsed() > PATIENCE => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, Some("another process keeps the index".to_owned())));
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
