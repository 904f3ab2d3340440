//! The marker: what says that a place is ours, of which format, and whether its server keeps two writers apart.

use serde::{Deserialize, Serialize};

use super::RemoteError;
use super::client::Client;
use super::names::{MARKER, VERSION};

/// The format that this program writes; it reads every one up to it.
pub(super) const FORMAT: u64 = 1;
const MOST_BYTES: u64 = 1 << 16;

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Format version.
    pub format: u64,
    /// Whether of two writers of one name the second is refused, as seen when the marker was made. Some servers ignore
    /// the condition in silence.
    #[serde(default)]
    pub conditional_put: bool,
}

/// Reads the marker; `None` if there is nothing of ours. A store that is shared as it is has its own.
pub(super) fn read(client: &Client) -> Result<Option<Marker>, RemoteError> {
    let not_ours = |what: &str| RemoteError::NotOurs { url: client.url().to_owned(), what: what.to_owned() };
    let marker = match client.get(MARKER, MOST_BYTES)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| not_ours("its `remote.json` cannot be read"))?,
        None => {
            let Some(bytes) = client.get(VERSION, MOST_BYTES)? else { return Ok(None) };
            let text = String::from_utf8_lossy(&bytes);
            let format = text.trim().parse().map_err(|_| not_ours("its `VERSION` is no number"))?;
            Marker { format, conditional_put: false }
        }
    };
    if marker.format > FORMAT {
        return Err(RemoteError::NewerFormat { found: marker.format, known: FORMAT });
    }
    Ok(Some(marker))
}

/// Reads the marker, or makes it where there is nothing of ours.
pub(super) fn ensure(client: &Client) -> Result<Marker, RemoteError> {
    if let Some(marker) = read(client)? {
        return Ok(marker);
    }
    let marker = Marker { format: FORMAT, conditional_put: probe(client)? };
    let mut bytes = serde_json::to_vec(&marker).map_err(crate::store::StoreError::from)?;
    bytes.push(b'\n');
    client.put(MARKER, bytes)?;
    Ok(marker)
}

/// Whether the server refuses the second of two writers: a name is created twice.
pub(super) fn probe(client: &Client) -> Result<bool, RemoteError> {
    let name = format!("probe-{}-{}", std::process::id(), crate::fs::now().as_nanosecond());
    let first = client.create(&name, b"first".to_vec())?;
    let second = client.create(&name, b"second".to_vec())?;
    let kept = client.get(&name, MOST_BYTES)?.is_some_and(|bytes| bytes == b"first");
    // Who may write need not be allowed to remove.
    if let Err(error) = client.remove(&name) {
        tracing::debug!("`{name}` stays in the remote cache: {error}");
    }
    Ok(first && !second && kept)
}
