//! How two ranks come to trust a connection: each proves that it has the token, by signing what the other drew, and says
//! what it is. Only the side that listens judges; it tells the other what it found.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::TeamError;
use super::token::{SIZE, Token, nonce};

/// What both sides begin with, so that neither reads on where the other is something else.
const MAGIC: &[u8; 16] = b"sami ranks, 1\r\n\0";
/// The longest text that is read from a side that has not proved anything yet.
const MOST_TEXT: u32 = 1 << 16;

/// What a rank says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    /// Of this program.
    pub(super) version: String,
    /// What is computed.
    pub(super) subject: String,
    /// Where it listens for ranks of higher numbers.
    pub(super) port: u16,
}

/// What the side that listens says last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Welcome,
    /// The signature is not that of the token.
    Stranger,
    Refused(String),
}

/// Why a connection does not come to be.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It broke, or the other side is no rank of this team: another may come.
    Stranger(String),
    /// It is one, and it does not fit.
    Unfit(TeamError),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let slow = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        Self::Stranger(if slow { "no answer came in time".to_owned() } else { error.to_string() })
    }
}

impl From<TeamError> for Refusal {
    fn from(error: TeamError) -> Self {
        Self::Unfit(error)
    }
}

/// Gets ready for a conversation that must go on.
pub(super) fn patience(stream: &TcpStream, longest: Duration) -> io::Result<()> {
    let longest = Some(longest.max(Duration::from_millis(1)));
    stream.set_read_timeout(longest)?;
    stream.set_write_timeout(longest)?;
    stream.set_nodelay(true)
}

/// Asks to be let in.
pub(super) fn knock(stream: &mut TcpStream, token: &Token, hello: &Hello) -> Result<(), Refusal> {
    stream.write_all(MAGIC)?;
    magic(stream)?;
    let theirs = signature(stream)?;
    let (ours, text) = (nonce()?, json(hello)?);
    stream.write_all(&ours)?;
    stream.write_all(&token.sign(&[b"joins", &theirs, &ours, &text]))?;
    write_text(stream, &text)?;
    let answer = read_text(stream)?;
    let signed = signature(stream)?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(io::Error::from)?;
    match answer {
        // Only who has the token could have said so.
        Answer::Stranger => Err(Refusal::Stranger("the token is that of another team".to_owned())),
        _ if !token.accepts(&signed, &[b"takes", &ours, &theirs]) => {
            Err(Refusal::Stranger("what listens there has not the token".to_owned()))
        }
        Answer::Refused(what) => Err(Refusal::Unfit(TeamError::Mismatch { what })),
        Answer::Welcome => Ok(()),
    }
}

/// Lets a rank in that has the token and that `judge` finds to fit.
pub(super) fn answer(
    stream: &mut TcpStream,
    token: &Token,
    judge: impl FnOnce(&Hello) -> Result<(), TeamError>,
) -> Result<Hello, Refusal> {
    stream.write_all(MAGIC)?;
    let ours = nonce()?;
    stream.write_all(&ours)?;
    magic(stream)?;
    let theirs = signature(stream)?;
    let signed = signature(stream)?;
    let text = read_text(stream)?;
    let mut say = |answer: &Answer| -> Result<(), Refusal> {
        let proof = match answer {
            Answer::Stranger => [0; SIZE],
            _ => token.sign(&[b"takes", &theirs, &ours]),
        };
        write_text(stream, &json(answer)?)?;
        Ok(stream.write_all(&proof)?)
    };
    if !token.accepts(&signed, &[b"joins", &ours, &theirs, &text]) {
        say(&Answer::Stranger)?;
        return Err(Refusal::Stranger("it has not the token".to_owned()));
    }
    let hello: Hello = serde_json::from_slice(&text).map_err(io::Error::from)?;
    if let Err(error) = judge(&hello) {
        say(&Answer::Refused(error.to_string()))?;
        return Err(error.into());
    }
    say(&Answer::Welcome)?;
    Ok(hello)
}

fn magic(stream: &mut TcpStream) -> Result<(), Refusal> {
    let mut bytes = [0; MAGIC.len()];
    stream.read_exact(&mut bytes)?;
    if &bytes == MAGIC { Ok(()) } else { Err(Refusal::Stranger("what is there is no rank of `sami`".to_owned())) }
}

fn signature(stream: &mut TcpStream) -> io::Result<[u8; SIZE]> {
    let mut bytes = [0; SIZE];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// Writes a text and how long it is.
pub(super) fn write_text(stream: &mut TcpStream, text: &[u8]) -> io::Result<()> {
    stream.write_all(&(text.len() as u32).to_le_bytes())?;
    stream.write_all(text)
}

/// Reads what [`write_text`] wrote.
pub(super) fn read_text(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MOST_TEXT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a text of {length} bytes")));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok(text)
}
