//! Identities: trace, span, tenant. Newtypes where mixing would hurt.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Identity of a block: a UUID, the name of its folder in the bucket.
pub type BlockId = uuid::Uuid;

/// A 128-bit trace id, ordered as Tempo orders rows: unsigned byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// Reads up to 32 hex digits of either case; shorter text is left-padded with zeros.
    ///
    /// # Errors
    /// The offending character and its position, or that the text is longer than 128 bits.
    pub fn from_hex(text: &str) -> Result<Self, InvalidTraceId> {
        let mut id = 0u128;
        for (position, character) in text.chars().enumerate() {
            let Some(digit) = character.to_digit(16) else {
                return Err(InvalidTraceId::Character { character, position });
            };
            if position >= 32 {
                return Err(InvalidTraceId::TooLong);
            }
            id = id << 4 | u128::from(digit);
        }
        Ok(Self(id.to_be_bytes()))
    }

    /// 32 lower-case hex digits.
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// Lower-case hex without leading zeros, as search results and `TraceIDText` show it.
    pub fn to_short_hex(self) -> String {
        format!("{:x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a trace id. The texts are those of Tempo's HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTraceId {
    /// A character that is no hex digit.
    #[error("trace IDs can only contain hex characters: invalid character '{character}' at position {position}")]
    Character {
        /// The character.
        character: char,
        /// Its position, counted in characters from 0.
        position: usize,
    },
    /// More than 32 digits.
    #[error("trace IDs can't be larger than 128 bits")]
    TooLong,
}

/// Identity of a span inside its trace. The kind takes part because Zipkin's client and server halves share a span id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpanKey {
    /// The eight bytes of the span id, big-endian.
    pub span_id: u64,
    /// The OTLP kind, as sent.
    pub kind: i32,
}

/// A valid tenant name: also the name of its folder in the bucket. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The tenant of every request when multi-tenancy is off.
    pub const SINGLE: &'static str = "single-tenant";

    /// Checks a name against Tempo's rules: letters, digits and `! - _ . * ' ( )`, 1 to 150 bytes, not `.` or `..`.
    ///
    /// # Errors
    /// The rule that the name breaks, in Tempo's words.
    pub fn new(name: &str) -> Result<Self, InvalidTenant> {
        if name.is_empty() {
            return Err(InvalidTenant::Empty);
        }
        if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "!-_.*'()".contains(*c))) {
            return Err(InvalidTenant::Character { tenant: name.to_owned(), character });
        }
        if name.len() > 150 {
            return Err(InvalidTenant::TooLong);
        }
        if name == "." || name == ".." {
            return Err(InvalidTenant::Dots);
        }
        Ok(Self(Arc::from(name)))
    }

    /// The tenant `single-tenant`.
    pub fn single() -> Self {
        Self(Arc::from(Self::SINGLE))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for Tenant {
    type Error = InvalidTenant;

    fn try_from(name: String) -> Result<Self, InvalidTenant> {
        Self::new(&name)
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0.as_ref().to_owned()
    }
}

/// Why a name is not a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTenant {
    /// No name at all.
    #[error("no org id")]
    Empty,
    /// A character outside the allowed set.
    #[error("tenant ID '{tenant}' contains unsupported character '{character}'")]
    Character {
        /// The name.
        tenant: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// More than 150 bytes.
    #[error("tenant ID is too long: max 150 characters")]
    TooLong,
    /// A name that would walk the file system.
    #[error("tenant ID is '.' or '..'")]
    Dots,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids_are_padded_and_checked() {
        assert_eq!(TraceId::from_hex("A1").map(TraceId::to_hex), Ok("000000000000000000000000000000a1".to_owned()));
        assert_eq!(TraceId::from_hex("00a1").map(TraceId::to_short_hex), Ok("a1".to_owned()));
        assert_eq!(TraceId::from_hex("0g"), Err(InvalidTraceId::Character { character: 'g', position: 1 }));
        assert_eq!(TraceId::from_hex(&"1".repeat(33)), Err(InvalidTraceId::TooLong));
    }

    #[test]
    fn tenants_follow_tempos_rules() {
        assert!(Tenant::new("team-a_(1).*'!").is_ok());
        assert_eq!(Tenant::new(""), Err(InvalidTenant::Empty));
        assert_eq!(Tenant::new(".."), Err(InvalidTenant::Dots));
        assert_eq!(Tenant::new(&"x".repeat(151)), Err(InvalidTenant::TooLong));
        assert!(matches!(Tenant::new("a/b"), Err(InvalidTenant::Character { character: '/', .. })));
    }
}
