//! A file of words that another process appends to.

use std::fs::Metadata;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::Word;

/// What is read of it at once.
const MOST: u64 = 1 << 20;

/// Where one is in the file.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    at: u64,
    /// A line whose end was not there yet.
    rest: Vec<u8>,
}

impl Tail {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, at: 0, rest: Vec::new() }
    }

    /// Whether anything was ever said.
    pub(super) fn heard(&self) -> bool {
        self.at > 0
    }

    /// What was said since the last time. A file that is not there, or cannot be read, says nothing yet.
    pub(super) fn read(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        loop {
            let before = self.at;
            match self.block() {
                Ok(Some(block)) => self.rest.extend(block),
                Ok(None) => break,
                Err(error) => {
                    if error.kind() != ErrorKind::NotFound {
                        tracing::debug!("{error}");
                    }
                    break;
                }
            }
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(word) => words.push(word),
                    Err(error) => {
                        let line = String::from_utf8_lossy(&line);
                        tracing::warn!("a worker said what cannot be read ({error}): {}", line.trim_end());
                    }
                }
            }
            if self.at == before {
                break;
            }
        }
        words
    }

    /// The next bytes. Opened anew each time: only then are another host's writes seen on NFS.
    fn block(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let length = |file: &fs_err::File| file.metadata().map(|file: Metadata| file.len());
        let mut file = fs_err::File::open(&self.path)?;
        if length(&file)? <= self.at {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut block = Vec::new();
        file.take(MOST).read_to_end(&mut block)?;
        self.at += block.len() as u64;
        Ok(Some(block))
    }
}
