//! Where ranks find each other: rank 0 listens and says where, the others come there and are told of one another.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::handshake::{Hello, Refusal, answer, knock, patience, read_text, write_text};
use super::team::Team;
use super::token::Token;
use super::{MOST_RANKS, TeamError};
use crate::fs;

/// From one look for what comes to the next.
const LOOK: Duration = Duration::from_millis(10);
/// How long a connection may take to come to be, and each word of its beginning.
const WORD: Duration = Duration::from_secs(10);

/// Where rank 0 is, and what lets the others in. To be shown to no one else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendezvous {
    /// `HOST:PORT`, the best first.
    pub addresses: Vec<String>,
    /// The secret.
    pub token: Token,
}

/// Who wants to meet.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// Number of this rank, from 0.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// What is computed: all must mean the same.
    pub subject: String,
    /// How long the others are waited for.
    pub patience: Duration,
    /// A rank that is not heard of for so long is lost.
    pub silence: Duration,
}

impl Meeting {
    /// Of one rank, with what is usual elsewhere: others are waited for five minutes, and lost after one of silence.
    pub fn new(rank: usize, ranks: usize, subject: String) -> Self {
        Self { rank, ranks, subject, patience: Duration::from_secs(300), silence: Duration::from_secs(60) }
    }

    fn hello(&self, port: u16) -> Hello {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Hello { rank: self.rank, ranks: self.ranks, version, subject: self.subject.clone(), port }
    }

    /// Whether another rank is of this team.
    fn judge(&self, other: &Hello) -> Result<(), TeamError> {
        let own = self.hello(0);
        let differ = |what: &str, theirs: &str, ours: &str| {
            let what = format!("{what} of rank {} is {theirs}, that of rank {} is {ours}", other.rank, own.rank);
            Err(TeamError::Mismatch { what })
        };
        if other.version != own.version {
            return differ("the `sami`", &other.version, &own.version);
        }
        if other.ranks != own.ranks {
            return differ("the number of ranks", &other.ranks.to_string(), &own.ranks.to_string());
        }
        if other.subject != own.subject {
            return differ("the work", &other.subject, &own.subject);
        }
        if other.rank <= own.rank || other.rank >= own.ranks {
            return Err(TeamError::Mismatch { what: format!("a rank {} of {} came", other.rank, own.ranks) });
        }
        Ok(())
    }
}

impl Rendezvous {
    /// Writes it to a file that no one else may read, whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension("unfinished");
        fs::write_private(&unfinished, &serde_json::to_vec(self)?)?;
        fs::rename_soon(&unfinished, path)
    }

    /// Reads the file; `None` if there is none yet.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs_err::read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A listener, and where it can be reached.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    rendezvous: Rendezvous,
    /// The names of this machine; none where only itself can reach it.
    names: Vec<String>,
}

impl Door {
    /// For ranks on this machine alone.
    pub fn here(token: Token) -> Result<Self, TeamError> {
        Self::of(listen(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))])?, token, Vec::new())
    }

    /// For ranks on other machines too, which can reach this one by its names.
    pub fn everywhere(token: Token, names: Vec<String>) -> Result<Self, TeamError> {
        let all = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))];
        Self::of(listen(&all)?, token, names)
    }

    fn of(listener: TcpListener, token: Token, names: Vec<String>) -> Result<Self, TeamError> {
        let port = listener.local_addr().map_err(|error| cannot_listen(&error))?.port();
        let addresses = names.iter().map(String::as_str).chain(["127.0.0.1"]).map(|name| address(name, port)).collect();
        Ok(Self { listener, rendezvous: Rendezvous { addresses, token }, names })
    }

    /// Where it is.
    pub fn rendezvous(&self) -> &Rendezvous {
        &self.rendezvous
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }

    /// As rank 0, waits for all others. `still` is asked now and then whether they are still to be expected.
    pub fn meet(self, meeting: &Meeting, mut still: impl FnMut() -> Result<(), TeamError>) -> Result<Team, TeamError> {
        check(meeting)?;
        let deadline = Instant::now() + meeting.patience;
        let mut streams: Vec<Option<TcpStream>> = (0..meeting.ranks).map(|_| None).collect();
        let hellos = self.accept(meeting, &mut streams, deadline, &mut still)?;
        let mut addresses = vec![Vec::new(); meeting.ranks];
        for hello in hellos {
            let seen = streams[hello.rank].as_ref().and_then(|stream| stream.peer_addr().ok());
            addresses[hello.rank] = match seen.map(|seen| seen.ip().to_canonical()) {
                Some(ip) if !ip.is_loopback() => vec![SocketAddr::new(ip, hello.port).to_string()],
                // It is on this machine.
                _ => {
                    let names = self.names.iter().map(String::as_str).chain(["127.0.0.1"]);
                    names.map(|name| address(name, hello.port)).collect()
                }
            };
        }
        let table = serde_json::to_vec(&addresses).map_err(|error| TeamError::Join { what: error.to_string() })?;
        for (rank, stream) in streams.iter_mut().enumerate() {
            let Some(stream) = stream else { continue };
            write_text(stream, &table).map_err(|error| TeamError::Lost {
                rank,
                ranks: meeting.ranks,
                what: error.to_string(),
            })?;
        }
        Team::new(meeting, streams)
    }

    /// Lets all ranks in that are above this one.
    fn accept(
        &self,
        meeting: &Meeting,
        streams: &mut [Option<TcpStream>],
        deadline: Instant,
        still: &mut impl FnMut() -> Result<(), TeamError>,
    ) -> Result<Vec<Hello>, TeamError> {
        self.listener.set_nonblocking(true).map_err(|error| cannot_listen(&error))?;
        let (tell, answered): (Sender<Answered>, Receiver<Answered>) = channel();
        let shared = Arc::new((meeting.clone(), self.rendezvous.token.clone()));
        let mut hellos = Vec::new();
        let mut strangers = String::new();
        while hellos.len() < meeting.ranks - 1 - meeting.rank {
            match self.listener.accept() {
                // One that says nothing keeps no other from coming.
                Ok((stream, _)) => let_in(stream, Arc::clone(&shared), tell.clone()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                Err(error) => tracing::debug!("a connection did not come to be: {error}"),
            }
            for (stream, met) in answered.try_iter() {
                match met {
                    Ok(hello) if streams[hello.rank].is_some() => {
                        return Err(TeamError::Mismatch { what: format!("there are two ranks {}", hello.rank) });
                    }
                    Ok(hello) => {
                        streams[hello.rank] = Some(stream);
                        hellos.push(hello);
                    }
                    Err(Refusal::Unfit(error)) => return Err(error),
                    Err(Refusal::Stranger(what)) => {
                        tracing::warn!("a stranger came to where the ranks meet: {what}");
                        strangers = format!("; a stranger came: {what}");
                    }
                }
            }
            still()?;
            if Instant::now() > deadline {
                let missing: Vec<String> = (meeting.rank + 1..meeting.ranks)
                    .filter(|rank| streams[*rank].is_none())
                    .map(|rank| rank.to_string())
                    .collect();
                let (missing, waited) = (missing.join(", "), meeting.patience.as_secs_f64());
                let what = format!("rank {missing} of {} has not come in {waited} s{strangers}", meeting.ranks);
                return Err(TeamError::Join { what });
            }
        }
        Ok(hellos)
    }
}

/// Joins as another rank than 0. `source` says where rank 0 is, as soon as that is known.
pub(super) fn join(
    meeting: &Meeting,
    mut source: impl FnMut() -> io::Result<Option<Rendezvous>>,
) -> Result<Team, TeamError> {
    check(meeting)?;
    let deadline = Instant::now() + meeting.patience;
    let mut streams: Vec<Option<TcpStream>> = (0..meeting.ranks).map(|_| None).collect();
    let mut met: Option<(TcpStream, Door)> = None;
    let mut why = "rank 0 has not said where it is".to_owned();
    while met.is_none() {
        match source() {
            Ok(Some(rendezvous)) => match reach(&rendezvous, meeting) {
                Ok(found) => met = Some(found),
                Err(Refusal::Unfit(error)) => return Err(error),
                Err(Refusal::Stranger(what)) => why = format!("rank 0 cannot be reached: {what}"),
            },
            Ok(None) => {}
            Err(error) => why = format!("where rank 0 is cannot be read: {error}"),
        }
        if met.is_none() && Instant::now() > deadline {
            let what = format!("rank {} waited for {} s: {why}", meeting.rank, meeting.patience.as_secs_f64());
            return Err(TeamError::Join { what });
        }
        if met.is_none() {
            std::thread::sleep(5 * LOOK);
        }
    }
    let Some((mut first, door)) = met else { return Err(TeamError::Join { what: why }) };
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).max(LOOK);
    let gone = |error: io::Error| TeamError::Join { what: format!("rank 0 has let go before all had come: {error}") };
    patience(&first, left(deadline)).map_err(gone)?;
    let table = read_text(&mut first).map_err(gone)?;
    let table: Vec<Vec<String>> = serde_json::from_slice(&table).map_err(|error| gone(error.into()))?;
    streams[0] = Some(first);
    for (rank, addresses) in table.iter().enumerate().take(meeting.rank).skip(1) {
        let own = Rendezvous { addresses: addresses.clone(), token: door.rendezvous.token.clone() };
        let stream = connect(&own, meeting, door.port(), left(deadline)).map_err(|refusal| match refusal {
            Refusal::Unfit(error) => error,
            Refusal::Stranger(what) => {
                TeamError::Join { what: format!("rank {} cannot reach rank {rank}: {what}", meeting.rank) }
            }
        })?;
        streams[rank] = Some(stream);
    }
    door.accept(meeting, &mut streams, deadline, &mut || Ok(()))?;
    Team::new(meeting, streams)
}

/// Reaches rank 0, with a door for the ranks of higher numbers.
fn reach(rendezvous: &Rendezvous, meeting: &Meeting) -> Result<(TcpStream, Door), Refusal> {
    let here = rendezvous.addresses.iter().all(|address| address.starts_with("127."));
    let token = rendezvous.token.clone();
    let door = if here { Door::here(token)? } else { Door::everywhere(token, Vec::new())? };
    let stream = connect(rendezvous, meeting, door.port(), WORD)?;
    Ok((stream, door))
}

/// Connects to a rank by one of its addresses.
fn connect(to: &Rendezvous, meeting: &Meeting, port: u16, longest: Duration) -> Result<TcpStream, Refusal> {
    let mut why = Vec::new();
    for name in &to.addresses {
        let found = match name.to_socket_addrs() {
            Ok(found) => found,
            Err(error) => {
                why.push(format!("{name}: {error}"));
                continue;
            }
        };
        for address in found {
            let knocked = TcpStream::connect_timeout(&address, longest.min(WORD)).map_err(Refusal::from);
            let knocked = knocked.and_then(|mut stream| {
                patience(&stream, longest)?;
                knock(&mut stream, &to.token, &meeting.hello(port))?;
                Ok(stream)
            });
            match knocked {
                Ok(stream) => return Ok(stream),
                Err(Refusal::Stranger(what)) => why.push(format!("{address}: {what}")),
                Err(unfit) => return Err(unfit),
            }
        }
    }
    Err(Refusal::Stranger(why.join("; ")))
}

type Answered = (TcpStream, Result<Hello, Refusal>);

/// Answers a connection on a thread of its own.
fn let_in(mut stream: TcpStream, meeting: Arc<(Meeting, Token)>, tell: Sender<Answered>) {
    let answering = std::thread::Builder::new().stack_size(1 << 18).spawn(move || {
        let (meeting, token) = &*meeting;
        let met = stream
            .set_nonblocking(false)
            .and_then(|()| patience(&stream, WORD))
            .map_err(Refusal::from)
            .and_then(|()| answer(&mut stream, token, |hello| meeting.judge(hello)));
        // No one listens any more once all have come.
        let _ = tell.send((stream, met));
    });
    if let Err(error) = answering {
        tracing::warn!("a rank cannot be answered: {error}");
    }
}

fn check(meeting: &Meeting) -> Result<(), TeamError> {
    if meeting.ranks > MOST_RANKS || meeting.rank >= meeting.ranks {
        let what = format!("there is no rank {} of {}, they are {MOST_RANKS} at most", meeting.rank, meeting.ranks);
        return Err(TeamError::Launch { what });
    }
    Ok(())
}

fn listen(at: &[SocketAddr]) -> Result<TcpListener, TeamError> {
    TcpListener::bind(at).map_err(|error| cannot_listen(&error))
}

fn cannot_listen(error: &io::Error) -> TeamError {
    TeamError::Join { what: format!("this process cannot listen for the others: {error}") }
}

fn address(name: &str, port: u16) -> String {
    match name.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{name}:{port}"),
    }
}
