//! What ranks do together.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::frame::{Head, Kind, numbers, write_numbers};
use super::link::{Abort, Event, Links};
use super::tree::{Branch, Stack};
use super::{TeamError, rendezvous::Meeting};

/// This process's place among ranks that compute together. Operations are collective: every rank calls the same ones in
/// the same order. Each errs if a rank is lost or cannot go on, and so does every one after it.
#[derive(Debug)]
pub struct Team {
    links: Arc<Links>,
    inbox: Receiver<(usize, Event)>,
    /// By rank: what came before it was asked for.
    early: Vec<VecDeque<(u64, Vec<u8>)>>,
    left: Vec<bool>,
    operation: u64,
    /// Why nothing works any more.
    broken: Option<TeamError>,
}

/// What remains of a team where it is given away: the word that ends it.
#[derive(Debug, Clone)]
pub struct Line(Arc<Links>);

impl Line {
    /// Tells all other ranks that this one cannot go on.
    pub fn abort(&self, what: &str) {
        self.0.abort(&TeamError::Failed { rank: self.0.rank, what: what.to_owned() });
    }

    /// Tells them that this one has done its part.
    pub fn leave(&self) {
        self.0.last(Kind::Bye, &[]);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // Whoever ends without a word is lost to the others.
        self.links.close();
    }
}

impl Team {
    /// Of connections to all other ranks, by rank.
    pub(super) fn new(meeting: &Meeting, streams: Vec<Option<TcpStream>>) -> Result<Self, TeamError> {
        let ranks = streams.len();
        let (tell, inbox) = channel();
        let links = Links::new(meeting.rank, streams, meeting.silence, &tell)
            .map_err(|error| TeamError::Join { what: format!("the connections cannot be listened to: {error}") })?;
        let early = (0..ranks).map(|_| VecDeque::new()).collect();
        Ok(Self { links, inbox, early, left: vec![false; ranks], operation: 0, broken: None })
    }

    /// Number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.links.rank
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.links.ranks
    }

    /// Bytes that this rank has sent.
    pub fn sent(&self) -> u64 {
        self.links.sent()
    }

    /// What can end the team when it has been given away.
    pub fn line(&self) -> Line {
        Line(Arc::clone(&self.links))
    }

    /// Parts from the others, who go on without this rank.
    pub fn leave(self) {
        self.line().leave();
    }

    /// Errs if a rank is known to be lost.
    pub fn check(&mut self) -> Result<(), TeamError> {
        self.guarded(|team| {
            while let Ok((rank, event)) = team.inbox.try_recv() {
                team.hear(rank, event)?;
            }
            Ok(())
        })
    }

    /// Every rank's bytes, by rank.
    pub fn gather(&mut self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, TeamError> {
        self.guarded(|team| {
            let operation = team.next();
            for peer in team.links.peers() {
                team.sending(peer, team.links.send(peer, Kind::Data, operation, &own))?;
            }
            let mut all: Vec<Vec<u8>> = vec![Vec::new(); team.ranks()];
            for peer in team.links.peers() {
                all[peer] = team.wait(peer, operation)?;
            }
            let rank = team.rank();
            all[rank] = own;
            Ok(all)
        })
    }

    /// What rank 0 says; what others give does not matter.
    pub fn said_by_first(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, TeamError> {
        self.guarded(|team| {
            let operation = team.next();
            if team.rank() != 0 {
                return team.wait(0, operation);
            }
            for peer in team.links.peers() {
                team.sending(peer, team.links.send(peer, Kind::Data, operation, &bytes))?;
            }
            Ok(bytes)
        })
    }

    /// Waits for what the ranks do together by another way than these connections: until `look` finds something. It is asked
    /// again and again. Errs if a rank is lost meanwhile.
    pub fn meanwhile<T>(
        &mut self,
        mut look: impl FnMut(&Self) -> Result<Option<T>, TeamError>,
    ) -> Result<T, TeamError> {
        self.guarded(|team| {
            let (mut pause, longest) = (Duration::from_micros(20), Duration::from_millis(1));
            let (mut heeded, often) = (Instant::now(), team.patience());
            loop {
                if let Some(found) = look(team)? {
                    return Ok(found);
                }
                match team.inbox.recv_timeout(pause) {
                    Ok((rank, event)) => team.hear(rank, event)?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
                }
                if let Some(gone) = team.links.peers().find(|peer| team.left[*peer]) {
                    return Err(out_of_step(gone, "it has done its part already"));
                }
                let passed = heeded.elapsed();
                if passed >= often {
                    heeded = Instant::now();
                    team.heed_silence(passed, often)?;
                }
                pause = (2 * pause).min(longest);
            }
        })
    }

    /// What a rank has said of the next operation, which this one has not come to yet.
    pub fn said(&self, rank: usize) -> Option<&[u8]> {
        self.early[rank].front().map(|(_, bytes)| bytes.as_slice())
    }

    /// That this rank cannot go on, for another reason than one of its connections.
    pub fn failure(&self, what: impl Into<String>) -> TeamError {
        TeamError::Failed { rank: self.rank(), what: what.into() }
    }

    /// The sum of all leaves of a tree, see [`Branch`]: every rank gives the branches that it has of it, in order of ranks,
    /// `length` numbers each. All get the same bits.
    ///
    /// Each rank adds up a part of the numbers and gives it to the others: twice the numbers go out and come in, less what
    /// a rank has itself.
    pub fn sum(&mut self, leaves: usize, length: usize, own: Vec<(Branch, Vec<f32>)>) -> Result<Vec<f32>, TeamError> {
        self.guarded(|team| {
            let operation = team.next();
            let (rank, ranks) = (team.rank(), team.ranks());
            let part = |rank: usize| length * rank / ranks..length * (rank + 1) / ranks;
            for peer in team.links.peers() {
                let part = part(peer);
                let each = Branch::SIZE + size_of::<f32>() * part.len();
                let head = Head { kind: Kind::Data, operation, length: (own.len() * each) as u64 };
                let write = |to: &mut &TcpStream| own.iter().try_for_each(|branch| write_branch(branch, &part, to));
                team.sending(peer, team.links.send_with(peer, head, write))?;
            }
            let mut stack = Stack::new(leaves);
            let mine = part(rank);
            for from in 0..ranks {
                if from == rank {
                    for (branch, numbers) in &own {
                        let Ok(()) = stack.push(*branch, numbers[mine.clone()].to_vec(), |sum, other| add(sum, other));
                    }
                    continue;
                }
                let bytes = team.wait(from, operation)?;
                let each = Branch::SIZE + size_of::<f32>() * mine.len();
                for bytes in bytes.chunks(each) {
                    let split = bytes.split_first_chunk().filter(|_| bytes.len() == each);
                    let (branch, bytes) = split.ok_or_else(|| out_of_step(from, "a sum of another length"))?;
                    let Ok(()) = stack.push(Branch::of_bytes(branch), numbers(bytes), |sum, other| add(sum, other));
                }
            }
            let sum = stack.into_root().ok_or_else(|| out_of_step(rank, "parts that make no whole"))?;
            let operation = team.next();
            for peer in team.links.peers() {
                let head = Head { kind: Kind::Data, operation, length: (size_of::<f32>() * sum.len()) as u64 };
                team.sending(peer, team.links.send_with(peer, head, |to| write_numbers(&sum, to)))?;
            }
            let mut all = Vec::with_capacity(length);
            for from in 0..ranks {
                if from == rank {
                    all.extend_from_slice(&sum);
                } else {
                    all.extend(numbers(&team.wait(from, operation)?));
                }
                if all.len() != part(from).end {
                    return Err(out_of_step(from, "a part of another length"));
                }
            }
            Ok(all)
        })
    }

    /// The next operation's number.
    fn next(&mut self) -> u64 {
        self.operation += 1;
        self.operation
    }

    /// Does something that breaks the team if it fails.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, TeamError>) -> Result<T, TeamError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        work(self).inspect_err(|error| {
            self.links.abort(error);
            self.broken = Some(error.clone());
        })
    }

    /// What a rank sends in an operation.
    fn wait(&mut self, from: usize, operation: u64) -> Result<Vec<u8>, TeamError> {
        let look = self.patience();
        loop {
            if let Some((came, bytes)) = self.early[from].pop_front() {
                if came == operation {
                    return Ok(bytes);
                }
                return Err(out_of_step(from, &format!("operation {came} instead of {operation}")));
            }
            if self.left[from] {
                return Err(out_of_step(from, "it has done its part already"));
            }
            let began = Instant::now();
            match self.inbox.recv_timeout(look) {
                Ok((rank, event)) => self.hear(rank, event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.lost(from, "the connection is gone")),
            }
            self.heed_silence(began.elapsed(), look)?;
        }
    }

    /// How long one waits before one asks who is silent.
    fn patience(&self) -> Duration {
        (self.links.silence / 4).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    /// Errs if a rank is silent for too long, after a wait that was to take `look`.
    fn heed_silence(&self, waited: Duration, look: Duration) -> Result<(), TeamError> {
        // Who was stopped itself has heard nothing meanwhile.
        if waited > 2 * look {
            return Ok(());
        }
        let silent = self.links.peers().find(|peer| {
            !self.left[*peer] && self.early[*peer].is_empty() && self.links.silent_for(*peer) > self.links.silence
        });
        silent.map_or(Ok(()), |silent| {
            let what = format!("nothing was heard of it for {} s", self.links.silence.as_secs_f64());
            Err(self.lost(silent, &what))
        })
    }

    fn hear(&mut self, rank: usize, event: Event) -> Result<(), TeamError> {
        match event {
            Event::Data { operation, bytes } => self.early[rank].push_back((operation, bytes)),
            Event::Left => self.left[rank] = true,
            Event::Lost(what) => return Err(self.lost(rank, &what)),
            Event::Abort(Abort { rank, lost: true, what }) => return Err(self.lost(rank, &what)),
            Event::Abort(Abort { rank, what, .. }) => return Err(TeamError::Failed { rank, what }),
        }
        Ok(())
    }

    fn lost(&self, rank: usize, what: &str) -> TeamError {
        TeamError::Lost { rank, ranks: self.ranks(), what: what.to_owned() }
    }

    /// What became of a frame that was sent to a rank: one that cannot be reached may have said why before.
    fn sending(&mut self, peer: usize, sent: io::Result<()>) -> Result<(), TeamError> {
        let Err(error) = sent else { return Ok(()) };
        let soon = Duration::from_millis(200);
        while let Ok((rank, event)) = self.inbox.recv_timeout(soon) {
            self.hear(rank, event)?;
        }
        Err(self.lost(peer, &format!("it cannot be reached: {error}")))
    }
}

fn write_branch((branch, numbers): &(Branch, Vec<f32>), part: &Range<usize>, to: &mut impl Write) -> io::Result<()> {
    to.write_all(&branch.bytes())?;
    write_numbers(&numbers[part.clone()], to)
}

fn add(sum: &mut [f32], numbers: Vec<f32>) -> Result<(), Infallible> {
    sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
    Ok(())
}

fn out_of_step(rank: usize, what: &str) -> TeamError {
    TeamError::OutOfStep { what: format!("rank {rank}: {what}") }
}
