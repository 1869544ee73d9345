//! What can be wrong with a query: before it runs ([`Error`]) and while it runs ([`ExecutionError`]).

use std::fmt;

use super::{ast::Position, value::Type};

/// How far a query got before it was refused. Over HTTP all three are status 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The text is not in the grammar.
    Parse,
    /// It parses, but types or arguments are illegal.
    Validation,
    /// It is legal, but this construct is not implemented.
    Unsupported,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parse => "parse",
            Self::Validation => "validation",
            Self::Unsupported => "unsupported",
        })
    }
}

/// Why a query is refused, and where in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// How far it got.
    pub class: ErrorClass,
    /// Where the offending part begins.
    pub at: Position,
    /// What is wrong, without the place.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.at;
        match self.class {
            ErrorClass::Parse => write!(f, "parse error at line {line}, col {column}: syntax error: {}", self.message),
            ErrorClass::Validation | ErrorClass::Unsupported => write!(f, "{} (line {line}, col {column})", self.message),
        }
    }
}

/// Longest part of a query that is quoted in a message, in bytes.
const MAX_QUOTE: usize = 256;

impl Error {
    pub(super) fn parse(at: Position, message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Parse, at, message: message.into() }
    }

    pub(super) fn validation(at: Position, message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Validation, at, message: message.into() }
    }

    pub(super) fn unsupported(at: Position, what: impl fmt::Display) -> Self {
        Self { class: ErrorClass::Unsupported, at, message: format!("{what} not yet supported") }
    }
}

/// A part of a query for a message, cut if it is long.
pub(super) fn quote(part: impl fmt::Display) -> String {
    let mut text = part.to_string();
    if text.len() > MAX_QUOTE {
        text.truncate(text.floor_char_boundary(MAX_QUOTE));
        text.push('…');
    }
    text
}

/// Why a query that is legal failed on a trace. It fails as a whole, not only for that trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutionError {
    /// `1 / 0` or `1 % 0` with integers.
    #[error("integer division by zero in \"{expression}\"")]
    DivisionByZero {
        /// Canonical text of the operation.
        expression: String,
    },
    /// `-x` or `!x` where x is absent or of another type.
    #[error("\"{expression}\" needs a {expected} operand, found {found}")]
    Operand {
        /// Canonical text of the operation.
        expression: String,
        /// What the operator works on.
        expected: &'static str,
        /// What the span has.
        found: &'static str,
    },
    /// Arithmetic on an array, or a comparison of two arrays.
    #[error("\"{expression}\" is not defined for arrays")]
    Array {
        /// Canonical text of the operation.
        expression: String,
    },
    /// A structural operator with `by()` on one of its sides.
    #[error("\"{operator}\" needs one spanset on each side, found {found}; use coalesce() after by()")]
    Groups {
        /// The operator.
        operator: &'static str,
        /// How many there were.
        found: usize,
    },
}

impl ExecutionError {
    pub(crate) fn division_by_zero(whole: impl fmt::Display) -> Self {
        Self::DivisionByZero { expression: quote(whole) }
    }

    pub(crate) fn operand(whole: impl fmt::Display, expected: &'static str, found: Type) -> Self {
        Self::Operand { expression: quote(whole), expected, found: found.as_str() }
    }

    pub(crate) fn array(whole: impl fmt::Display) -> Self {
        Self::Array { expression: quote(whole) }
    }
}
