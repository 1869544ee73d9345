//! The versions of the block format that are read and written, by the names that stand in `meta.json` (block-format.md §1).

use std::{fmt, str::FromStr};

/// A version of the block format. Its text is the `format` of `meta.json`, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// `vParquet2`.
    V2,
    /// `vParquet3`.
    V3,
    /// `vParquet4`, the default.
    V4,
    /// `vParquet5`.
    V5,
}

impl Format {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V2, Self::V3, Self::V4, Self::V5];

    /// The name in `meta.json` and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V2 => "vParquet2",
            Self::V3 => "vParquet3",
            Self::V4 => "vParquet4",
            Self::V5 => "vParquet5",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a valid block version: use one of vParquet2, vParquet3, vParquet4, vParquet5")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}
