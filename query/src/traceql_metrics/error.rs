//! Why a metrics query has no answer.

use super::window::WindowError;
use crate::{exec::ExecError, traceql};

/// Why a metrics query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The query has no metrics function.
    #[error("not a metrics query")]
    NotMetrics,
    /// The text is no query.
    #[error(transparent)]
    Query(#[from] traceql::Error),
    /// There is no time axis.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The series do not fit into memory, and leaving some out would make the others wrong.
    #[error(
        "the series of the query need more than {max_bytes} bytes of memory, narrow its time range, use a larger step, or group by fields with \
         fewer values"
    )]
    TooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// The query fails on some span, or a block cannot be read.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A partial result of another query.
    #[error("partial result does not belong to the query: {what}")]
    Foreign {
        /// What does not fit.
        what: &'static str,
    },
}
