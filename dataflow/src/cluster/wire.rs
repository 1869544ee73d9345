//! What meshes say to each other.
//!
//! A connection begins with [`MAGIC`] and a [`Hello`] from whoever dialled, answered with [`MAGIC`] and an [`Answer`]. Then it either
//! carries [`Beat`]s, in the dialler's direction only, or belongs to a generation, and what follows is timely's, or asks for something,
//! and what follows is [`crate::tails`]'.
//!
//! ```text
//!  frame = length: u32 big endian, at most MAX_FRAME │ JSON
//! ```
//!
//! Anybody may connect: everything read has a bound and a deadline, and what is not understood ends the connection. Fields that are not
//! known are passed over, so that processes of different versions know of each other while one replaces the other.

use std::{collections::BTreeMap, io, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Candidate, Epoch, MAX_ID_BYTES, Member, Settings};

/// First bytes in each direction; the last is the version of this module.
pub(crate) const MAGIC: [u8; 8] = *b"rubato\0\x01";

/// Longest frame before and after the other end is known: a form names every member.
const MAX_HELLO: u32 = 32 << 10;
const MAX_FRAME: u32 = 1 << 20;

/// Who dials, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The cluster's name: two of them in one network must not mix.
    pub(crate) cluster: String,
    /// Version of the dataflow: operators, records, crates.
    pub(crate) wire: u32,
    /// Workers of a process.
    pub(crate) threads: usize,
    /// Who dials.
    pub(crate) from: Candidate,
    /// Whom they mean to reach: addresses are used again by others.
    pub(crate) to: String,
    /// For a generation's connection: which.
    pub(crate) epoch: Option<Epoch>,
    /// Whether a question follows. If neither, beats do.
    #[serde(default)]
    pub(crate) asks: bool,
    /// What else must be the same, see [`Settings::alike`].
    #[serde(default)]
    pub(crate) alike: BTreeMap<String, String>,
}

impl Hello {
    /// What whoever dials has otherwise than this process, so that the two cannot be members of one formation: a label, and words.
    pub(crate) fn difference(&self, here: &Settings) -> Option<(&'static str, String)> {
        if self.wire != here.wire {
            return Some(("wire_version", format!("the wire version is {}, not {}", here.wire, self.wire)));
        }
        if self.threads != here.threads {
            return Some(("threads", format!("the number of threads is {}, not {}", here.threads, self.threads)));
        }
        let names = here.alike.keys().chain(self.alike.keys());
        let differs = |name: &&String| here.alike.get(*name) != self.alike.get(*name);
        let shown =
            |settings: &BTreeMap<String, String>, name: &str| settings.get(name).cloned().unwrap_or_else(|| "the default".to_owned());
        let name = names.filter(differs).min()?;
        Some(("settings", format!("{name} is {} here, and there {}", shown(&here.alike, name), shown(&self.alike, name))))
    }
}

/// Whether the connection is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Why not.
    pub(crate) refused: Option<String>,
}

/// A sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// Highest counter of an epoch that the sender has heard of, for whoever chooses the next.
    pub(crate) newest: u64,
    /// Counter of the newest manifest that it has heard of; a generation below cannot commit.
    pub(crate) floor: u64,
    /// The epoch whose connections it has all of.
    pub(crate) running: Option<Epoch>,
    /// Whom it hears, with incarnations.
    pub(crate) hears: Vec<(String, u64)>,
    /// It is about to go, and will not take part any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) leaving: bool,
    /// The form that the sender, as leader, wants the receiver to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) form: Option<Form>,
}

/// Who forms the next generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Form {
    pub(crate) epoch: Epoch,
    /// By id.
    pub(crate) members: Vec<Member>,
    pub(crate) threads: usize,
    pub(crate) wire: u32,
    pub(crate) why: Why,
}

/// What began a generation, as the leader saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Why {
    /// There was none.
    Start,
    /// A member was lost.
    Loss,
    /// A member is silent, though connected.
    Silence,
    /// A member left.
    Leave,
    /// A candidate came, or came back.
    Join,
    /// The form before did not come about, or ended somewhere else.
    Failure,
    /// A manifest has a higher epoch.
    Epoch,
    /// Somebody newer gives a reason that this process does not know.
    #[serde(other)]
    Other,
}

impl Why {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Loss => "loss",
            Self::Silence => "silence",
            Self::Leave => "leave",
            Self::Join => "join",
            Self::Failure => "failure",
            Self::Epoch => "epoch",
            Self::Other => "other",
        }
    }
}

/// What is wrong with a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("not a rubato mesh, or of another version: it begins with {0:02x?}")]
    Magic([u8; 8]),
    #[error("frame of {0} bytes is too long")]
    TooLong(u32),
    #[error("frame is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("refused: {0}")]
    Refused(String),
    #[error("nothing came for {0:?}")]
    TimedOut(Duration),
    #[error("name of {0} bytes is too long")]
    Name(usize),
}

/// Fails if it takes too long.
pub(crate) async fn within<T, E: Into<WireError>>(limit: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, WireError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(WireError::TimedOut(limit)),
    }
}

pub(crate) async fn write_frame(to: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> Result<(), WireError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    if length > MAX_FRAME {
        return Err(WireError::TooLong(length));
    }
    frame[..4].copy_from_slice(&length.to_be_bytes());
    to.write_all(&frame).await?;
    // An encrypted connection may keep it otherwise.
    to.flush().await?;
    Ok(())
}

async fn read_bounded<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), limit: u32) -> Result<T, WireError> {
    let length = from.read_u32().await?;
    if length > limit {
        return Err(WireError::TooLong(length));
    }
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame).await?;
    Ok(serde_json::from_slice(&frame)?)
}

/// A frame from a process that has said who it is.
pub(crate) async fn read_frame<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<T, WireError> {
    read_bounded(from, MAX_FRAME).await
}

async fn read_magic(from: &mut (impl AsyncRead + Unpin)) -> Result<(), WireError> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic).await?;
    if magic == MAGIC { Ok(()) } else { Err(WireError::Magic(magic)) }
}

/// Bytes of a known length.
pub(crate) async fn write_bytes(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), WireError> {
    let length = u32::try_from(bytes.len()).map_err(|_| WireError::TooLong(u32::MAX))?;
    to.write_all(&length.to_be_bytes()).await?;
    to.write_all(bytes).await?;
    Ok(())
}

/// At most `limit` of them; memory grows with what comes.
pub(crate) async fn read_bytes(from: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<Vec<u8>, WireError> {
    let length = from.read_u32().await?;
    if length as usize > limit {
        return Err(WireError::TooLong(length));
    }
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if bytes.len() < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

/// The dialler's side of the beginning.
pub(crate) async fn introduce(connection: &mut (impl AsyncRead + AsyncWrite + Unpin), hello: &Hello) -> Result<(), WireError> {
    connection.write_all(&MAGIC).await?;
    write_frame(connection, hello).await?;
    read_magic(connection).await?;
    let answer: Answer = read_bounded(connection, MAX_HELLO).await?;
    answer.refused.map_or(Ok(()), |reason| Err(WireError::Refused(reason)))
}

/// The listener's side, up to the question.
pub(crate) async fn read_hello(connection: &mut (impl AsyncRead + Unpin)) -> Result<Hello, WireError> {
    read_magic(connection).await?;
    let hello: Hello = read_bounded(connection, MAX_HELLO).await?;
    match hello.from.id.len().max(hello.to.len()) {
        length if length > MAX_ID_BYTES => Err(WireError::Name(length)),
        _ => Ok(hello),
    }
}

/// The listener's side, the answer.
pub(crate) async fn answer(connection: &mut (impl AsyncWrite + Unpin), refused: Option<String>) -> Result<(), WireError> {
    connection.write_all(&MAGIC).await?;
    write_frame(connection, &Answer { refused }).await
}
