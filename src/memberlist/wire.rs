//! Messages as frames: four bytes of length, big-endian, then JSON.

use std::io::{Error, ErrorKind};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::entry::{Entry, Versions};

/// Longest frame.
pub(super) const MAX_FRAME_BYTES: usize = 16 << 20;

/// Of this protocol, which peers must share.
pub(super) const PROTOCOL: u32 = 1;

/// The first frame of whoever connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    pub(super) label: String,
    /// The member that speaks.
    pub(super) name: String,
}

/// Every other frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// What I know; answered by a `Delta`.
    Sync(Versions),
    /// What you don't know, and the keys that I would like to know.
    Delta { entries: Vec<Entry>, wanted: Vec<String> },
    /// What you wanted to know; answered by `Taken`.
    Entries(Vec<Entry>),
    /// I know it now.
    Taken,
}

pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &impl Serialize) -> std::io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame)?;
    let length = bytes.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES);
    let header = header.ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes is too large to be sent")))?;
    bytes[..4].copy_from_slice(&header.to_be_bytes());
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads a frame; none at the end of the stream.
pub(super) async fn read<F: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<F>> {
    let mut header = [0; 4];
    if let Err(error) = stream.read_exact(&mut header[..1]).await {
        return if error.kind() == ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    stream.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes is too large")));
    }
    // Grows with what comes, not with what was announced.
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}
