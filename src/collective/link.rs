//! Connections to the other ranks: a thread for each reads what comes, another says now and then that this rank is there.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::TeamError;
use super::frame::{BLOCK, Head, Kind};

/// What comes from a rank.
#[derive(Debug)]
pub(super) enum Event {
    /// Something of an operation.
    Data { operation: u64, bytes: Vec<u8> },
    /// It cannot go on, because of itself or of another.
    Abort(Abort),
    /// It has done its part.
    Left,
    /// Its connection is gone.
    Lost(String),
}

/// Why a rank cannot go on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Abort {
    /// Who is at fault.
    pub(super) rank: usize,
    /// Whether that one is lost, or has said so itself.
    pub(super) lost: bool,
    pub(super) what: String,
}

/// A connection.
#[derive(Debug)]
struct Link {
    stream: TcpStream,
    /// Held for a frame, that of two threads none comes between another's.
    writing: Mutex<()>,
    /// Milliseconds from the beginning until something came last.
    heard: AtomicU64,
}

/// Connections to all other ranks.
#[derive(Debug)]
pub(super) struct Links {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    /// By rank; none to itself.
    others: Vec<Option<Link>>,
    began: Instant,
    /// A rank that is not heard of for so long is lost.
    pub(super) silence: Duration,
    over: AtomicBool,
    sent: AtomicU64,
}

impl Links {
    /// Begins to listen; what comes goes to `inbox`.
    pub(super) fn new(
        rank: usize,
        streams: Vec<Option<TcpStream>>,
        silence: Duration,
        inbox: &Sender<(usize, Event)>,
    ) -> io::Result<Arc<Self>> {
        let ranks = streams.len();
        let links = streams.into_iter().map(|stream| {
            let Some(stream) = stream else { return Ok(None) };
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            // What does not even leave for so long has no one to take it.
            stream.set_write_timeout(Some(silence))?;
            Ok(Some(Link { stream, writing: Mutex::new(()), heard: AtomicU64::new(0) }))
        });
        let others = links.collect::<io::Result<Vec<_>>>()?;
        let links = Arc::new(Self {
            rank,
            ranks,
            others,
            began: Instant::now(),
            silence,
            over: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        });
        for peer in links.peers() {
            let (links, inbox) = (Arc::clone(&links), inbox.clone());
            thread(&format!("rank {peer}"), move || links.listen(peer, &inbox))?;
        }
        let beating = Arc::downgrade(&links);
        thread("beat", move || {
            let pause = (silence / 8).max(Duration::from_millis(1));
            loop {
                std::thread::sleep(pause);
                let Some(links) = beating.upgrade().filter(|links| !links.over.load(Ordering::Relaxed)) else { break };
                for peer in links.peers() {
                    // If it is gone the one who listens to it knows.
                    let _ = links.send(peer, Kind::Beat, 0, &[]);
                }
            }
        })?;
        Ok(links)
    }

    /// All other ranks, from the next one on.
    pub(super) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, ranks) = (self.rank, self.ranks);
        (1..ranks).map(move |step| (rank + step) % ranks)
    }

    fn link(&self, peer: usize) -> io::Result<&Link> {
        self.others.get(peer).and_then(Option::as_ref).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends a frame.
    pub(super) fn send(&self, peer: usize, kind: Kind, operation: u64, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        self.send_with(peer, Head { kind, operation, length }, |stream| stream.write_all(bytes))
    }

    /// Sends a frame whose content is written by `write`: as many bytes as the head says.
    pub(super) fn send_with(
        &self,
        peer: usize,
        head: Head,
        write: impl FnOnce(&mut &TcpStream) -> io::Result<()>,
    ) -> io::Result<()> {
        let link = self.link(peer)?;
        let _frame = link.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = &link.stream;
        head.write(&mut stream)?;
        write(&mut stream)?;
        self.sent.fetch_add(head.length, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that were sent to all ranks.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How long nothing has come from a rank.
    pub(super) fn silent_for(&self, peer: usize) -> Duration {
        let heard = self.link(peer).map_or(0, |link| link.heard.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(Duration::from_millis(heard))
    }

    fn heard(&self, peer: usize) {
        if let Ok(link) = self.link(peer) {
            link.heard.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }

    fn listen(&self, peer: usize, inbox: &Sender<(usize, Event)>) {
        // A team that is gone needs to hear no more.
        let tell = |event| _ = inbox.send((peer, event));
        loop {
            match self.next(peer) {
                Ok(Some(Event::Left)) => return tell(Event::Left),
                Ok(Some(event)) => tell(event),
                Ok(None) => return tell(Event::Lost("it closed the connection".to_owned())),
                Err(error) => return tell(Event::Lost(format!("the connection broke: {error}"))),
            }
        }
    }

    /// The next thing that is worth telling; `None`: the connection has ended.
    fn next(&self, peer: usize) -> io::Result<Option<Event>> {
        let mut stream = &self.link(peer)?.stream;
        loop {
            let Some(Head { kind, operation, length }) = Head::read(&mut stream)? else { return Ok(None) };
            self.heard(peer);
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < length {
                let block = (length - bytes.len() as u64).min(BLOCK as u64);
                if stream.take(block).read_to_end(&mut bytes)? as u64 != block {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.heard(peer);
            }
            return Ok(Some(match kind {
                Kind::Beat => continue,
                Kind::Data => Event::Data { operation, bytes },
                Kind::Abort => Event::Abort(serde_json::from_slice(&bytes)?),
                Kind::Bye => Event::Left,
            }));
        }
    }

    /// Tells all others that this rank cannot go on, and why.
    pub(super) fn abort(&self, error: &TeamError) {
        let (rank, lost, what) = match error {
            TeamError::Lost { rank, what, .. } => (*rank, true, what.clone()),
            TeamError::Failed { rank, what } => (*rank, false, what.clone()),
            other => (self.rank, false, other.to_string()),
        };
        if let Ok(text) = serde_json::to_vec(&Abort { rank, lost, what }) {
            self.last(Kind::Abort, &text);
        }
    }

    /// Says something for the last time, and closes.
    pub(super) fn last(&self, kind: Kind, bytes: &[u8]) {
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        for peer in self.peers() {
            // Whoever is gone need not hear it.
            let _ = self.send(peer, kind, 0, bytes);
            if let Ok(link) = self.link(peer) {
                let _ = link.stream.shutdown(Shutdown::Write);
            }
        }
    }

    /// Ends the threads that listen.
    pub(super) fn close(&self) {
        self.over.store(true, Ordering::Relaxed);
        for link in self.others.iter().flatten() {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(1 << 18).spawn(work).map(drop)
}
